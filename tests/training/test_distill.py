"""Distillation with the student's augmentation."""

import keras
import numpy as np
import pytest

from keras_augreg import AugReg, VisionTransformer
from keras_augreg.augment import AugRegAugment
from keras_augreg.training import Distiller, compile_pretraining


def build(seed):
    keras.utils.set_random_seed(seed)
    model = VisionTransformer(
        patch_size=8, width=8, depth=1, num_heads=1, mlp_dim=8,
        input_shape=(16, 16, 3), classes=3, seed=0,
    )  # fmt: skip
    head = model.get_layer("head")
    head.kernel.assign(keras.random.normal(head.kernel.shape, seed=seed))
    return model


def distiller(teacher, recipe):
    student = build(1)
    compile_pretraining(
        student, AugReg(recipe), total_steps=9, warmup_steps=1, seed=3
    )
    made = Distiller(teacher, student, keras.distillation.LogitsDistillation())
    made.compile()
    return made


def test_augments_for_teacher_and_student(tmp_path):
    """It trains as on images and labels that were augmented before."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 16, 16, 3)).astype("uint8")
    labels = (np.arange(8) % 3).astype("int32")
    teacher = build(0)
    first = distiller(teacher, "medium1")
    history = first.fit(
        images, labels, batch_size=4, epochs=2, shuffle=False, verbose=0,
        validation_data=(images, labels),
    ).history  # fmt: skip
    assert {"accuracy", "val_accuracy", "val_loss"} <= set(history)

    layer = AugRegAugment(AugReg("medium1"), 3, seed=3)
    by_hand = distiller(teacher, "none")
    for step in range(4):
        part = slice(step % 2 * 4, step % 2 * 4 + 4)
        by_hand.train_on_batch(*layer(images[part], labels[part], step=step))
    pairs = zip(
        first.student.weights, by_hand.student.get_weights(), strict=True
    )
    for variable, want in pairs:
        got = keras.ops.convert_to_numpy(variable)
        if variable.path.endswith("qkv_bias"):
            # A key's bias has no gradient but rounding noise.
            got, want = got[::2], want[::2]
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)

    first.save(tmp_path / "distiller.keras")
    again = keras.saving.load_model(tmp_path / "distiller.keras")
    np.testing.assert_allclose(
        again.student.predict(images, verbose=0),
        first.student.predict(images, verbose=0),
        rtol=1e-5,
    )


def test_keras_s_own_says_that_it_does_not_augment(recwarn):
    student = build(1)
    compile_pretraining(
        student, AugReg("light1"), total_steps=9, warmup_steps=1
    )
    plain = keras.distillation.Distiller(
        build(0), student, keras.distillation.LogitsDistillation()
    )
    plain.compile("sgd", "sparse_categorical_crossentropy")
    images, labels = np.zeros((4, 16, 16, 3), "uint8"), np.arange(4) % 3
    said = "augmentation that the model was compiled with is not applied"
    assert not [w for w in recwarn if said in str(w.message)]
    plain.fit(images, labels, verbose=0)
    assert [w for w in recwarn if said in str(w.message)]
    recwarn.clear()
    student.fit(images, labels, verbose=0)
    student(images)
    student(keras.Input((16, 16, 3)), training=True)
    ours = Distiller(build(0), student, plain.distillation_losses)
    ours.compile()
    ours.fit(images, labels, verbose=0)
    assert not [w for w in recwarn if said in str(w.message)]


@pytest.mark.once
def test_refuses_a_student_that_is_not_compiled():
    loss = keras.distillation.LogitsDistillation()
    with pytest.raises(ValueError, match="says how to train it"):
        Distiller(build(0), build(1), loss).compile()


def test_losses_that_distillation_cannot_take():
    student = build(1)
    compile_pretraining(
        student, AugReg("light1"), total_steps=9, warmup_steps=1
    )
    logits = keras.distillation.LogitsDistillation()
    made = Distiller(build(0), student, logits)
    for loss in ("kl_divergence", keras.losses.CategoricalCrossentropy()):
        with pytest.raises(ValueError, match="the models cannot return both"):
            made.compile(loss=loss)
    with pytest.raises(ValueError, match="makes probabilities of labels"):
        made.compile(loss="sparse_categorical_crossentropy")
    made.compile(loss=keras.losses.CategoricalCrossentropy(from_logits=True))
