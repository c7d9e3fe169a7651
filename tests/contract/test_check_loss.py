"""What can be asked of a loss without a host, of every loss."""

from lt_losses_mm.testing import check_loss


def test_check_loss(loss_type, loss_class):
    check_loss(loss_class(loss_type))
