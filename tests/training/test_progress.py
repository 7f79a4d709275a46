"""What `Workdir.fit` prints."""

from _run import make_model, train

from keras_augreg.training import progress


def test_counts_steps(tmp_path, capsys):
    train(make_model(), tmp_path, verbose=1)
    printed = capsys.readouterr().out
    headings = [x for x in printed.splitlines() if x.startswith("Steps")]
    assert headings == [
        f"Steps {i + 1} to {i + 4} of 20" for i in range(0, 20, 4)
    ]
    assert "Epoch" not in printed
    # The first step compiles; an estimate from it would be far too long.
    assert "1/4" not in printed.partition("Steps 5")[0]
    # Keras shows a step if the last one shown was 50 ms ago.
    first = printed.partition("Steps 5")[0]
    assert "2/4" in first or "3/4" in first
    assert "4/4" in printed


def test_steps_in_any_order(capsys):
    """Keras calls it in threads on JAX."""
    bar = progress.Progress(0, 8)
    bar.set_params({"verbose": 1, "epochs": 2, "steps": 4})
    bar.set_model(make_model())
    bar.on_epoch_begin(0)
    for batch in (1, 0, 2):
        bar.on_train_batch_end(batch, {})
    printed = capsys.readouterr().out
    assert "1/4" not in printed
    assert "2/4" in printed
    assert "3/4" in printed
    bar.on_epoch_begin(1)
    bar.on_train_batch_end(0, {})
    assert "1/4" in capsys.readouterr().out
