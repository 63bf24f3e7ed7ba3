from dft_cluster.planning.ledger import Ledger


def test_a_device_serves_new_blocks_out_of_freed_ones() -> None:
    ledger = Ledger("cuda")
    ledger.take("a", "weights", 10)
    ledger.take("b", "gradients", 5)
    ledger.free("b")
    ledger.phase = "later"
    ledger.take("c", "optimizer", 4)
    assert ledger.peak["device"].parts == {"weights": 10, "gradients": 5}
    assert ledger.peak["device"].phase == ""
    assert ledger.peak["host"].total == 0


def test_device_and_host_are_counted_apart() -> None:
    ledger = Ledger("cuda")
    ledger.take("a", "weights", 10)
    ledger.take("b", "optimizer", 7, "host")
    assert (ledger.peak["device"].total, ledger.peak["host"].total) == (10, 7)


def test_on_a_cpu_what_is_freed_counts_until_it_is_handed_back() -> None:
    ledger = Ledger("cpu")
    ledger.take("a", "weights", 10)
    ledger.take("b", "gradients", 5)
    ledger.free("b")
    ledger.take("c", "optimizer", 4)
    assert ledger.peak["host"].parts == {"weights": 10, "gradients": 5, "optimizer": 4}
    ledger.trim()
    ledger.take("d", "optimizer", 6)
    assert ledger.now("host").parts == {"weights": 10, "optimizer": 10}
    assert ledger.peak["device"].total == 0


def test_a_block_can_go_where_another_was() -> None:
    ledger = Ledger("cpu")
    ledger.take("zeros", "gradients", 8)
    ledger.free("zeros")
    ledger.take("start", "θ kept and scores", 6, instead_of="zeros")
    assert ledger.now("host").parts == {"gradients": 2, "θ kept and scores": 6}
    ledger.take("more", "θ kept and scores", 6, instead_of="zeros")
    assert ledger.now("host").parts == {"θ kept and scores": 12}
