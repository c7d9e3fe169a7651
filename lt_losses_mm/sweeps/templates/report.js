(() => {
  'use strict';
  const tables = [...document.querySelectorAll('table')];
  const rowsOf = table => [...table.tBodies[0].rows];
  const clean = text => text.replace(/\s+/g, ' ').trim();

  // What a cell sorts by: a number where it begins with one.
  const key = cell => {
    if (cell.dataset.sort !== undefined) return Number(cell.dataset.sort);
    const text = cell.textContent.trim();
    const number = parseFloat(text.replace(/,/g, '').replace('\u2212', '-')
      .replace(/^< /, ''));
    return cell.tagName === 'TH' || Number.isNaN(number) ? text : number;
  };
  const missing = value => value === '\u2013' || Number.isNaN(value);

  function sort(table, header) {
    const column = header.cellIndex;
    const keyed = rowsOf(table).map(row => [key(row.cells[column]), row]);
    const before = header.getAttribute('aria-sort');
    const numbers = keyed.some(([value]) => typeof value === 'number');
    const up = before ? before === 'descending' : !numbers;
    const compare = (a, b) => typeof a === 'number' && typeof b === 'number'
      ? a - b : String(a).localeCompare(String(b), 'en', { numeric: true });
    keyed.sort(([a], [b]) => missing(a) - missing(b)
      || (missing(a) ? 0 : up ? compare(a, b) : compare(b, a)));
    for (const other of table.tHead.rows[0].cells) {
      other.removeAttribute('aria-sort');
    }
    header.setAttribute('aria-sort', up ? 'ascending' : 'descending');
    table.tBodies[0].append(...keyed.map(([, row]) => row));
  }

  async function copy(table, button) {
    const rows = [table.tHead.rows[0], ...rowsOf(table).filter(r => !r.hidden)];
    const text = rows.map(row => [...row.cells]
      .map(cell => clean(cell.textContent).replace(/\u2212/g, '-'))
      .join('\t')).join('\n') + '\n';
    let done = true;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // Not every browser lets a page from the disk use the clipboard.
      const area = document.createElement('textarea');
      area.value = text;
      document.body.append(area);
      area.select();
      done = document.execCommand('copy');
      area.remove();
      button.focus();
    }
    button.textContent = done ? 'Copied' : 'Could not copy';
    setTimeout(() => { button.textContent = 'Copy as TSV'; }, 2000);
  }

  for (const table of tables) {
    for (const header of table.tHead.rows[0].cells) {
      const button = document.createElement('button');
      button.type = 'button';
      button.textContent = header.textContent;
      button.addEventListener('click', () => sort(table, header));
      header.replaceChildren(button);
    }
    const button = document.createElement('button');
    button.type = 'button';
    button.className = 'copy';
    button.textContent = 'Copy as TSV';
    button.addEventListener('click', () => copy(table, button));
    table.caption.firstElementChild.append(button);
  }

  const input = document.getElementById('words');
  const status = document.getElementById('found');
  let texts;
  function filter() {
    texts = texts || tables.flatMap(rowsOf)
      .map(row => [row, clean(row.textContent).toLowerCase()]);
    const wanted = clean(input.value).toLowerCase();
    let shown = 0;
    for (const [row, text] of texts) {
      row.hidden = !text.includes(wanted);
      shown += !row.hidden;
    }
    status.textContent = wanted ? `${shown} of ${texts.length} rows` : '';
  }
  input.addEventListener('input', filter);
  document.getElementById('filter').hidden = false;

  // On paper nothing can be opened.
  addEventListener('beforeprint', () => {
    for (const part of document.querySelectorAll('details')) part.open = true;
  });
})();
