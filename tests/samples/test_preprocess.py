from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from PIL import Image

from onnxslim.errors import SampleError
from onnxslim.samples import Color, Layout, Preprocess

ZOO_SPECS = (
    "resize=256,crop=224,mean=127,std=128",
    "scale=1/255,mean=0.485/0.456/0.406,std=0.229/0.224/0.225",
    "resize=240x320,mean=127,std=128",
    "resize=256,crop=224,scale=1/255,layout=NHWC,color=BGR",
    "color=GRAY",
)


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def stepped(width: int, height: int) -> Image.Image:
    """Every pixel's red channel is its column, its green channel its row."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    return Image.fromarray(np.stack([columns, rows, np.zeros_like(rows)], axis=-1))


# ---- text ------------------------------------------------------------------------------------------------

sizes = st.none() | st.integers(1, 16384) | st.tuples(st.integers(1, 16384), st.integers(1, 16384))
positive = st.floats(1e-30, 1e30, allow_subnormal=False) | st.integers(2, 300).map(lambda n: 1 / n) | st.floats(1e-5, 1)
anything = st.floats(-1e30, 1e30)


@st.composite
def preprocesses(draw: st.DrawFn) -> Preprocess:
    color = draw(st.sampled_from(Color))
    channels = 1 if color is Color.GRAY else 3

    def per_channel(numbers: st.SearchStrategy[float]) -> tuple[float, ...]:
        return tuple(draw(st.lists(numbers, min_size=1, max_size=channels).filter(lambda v: len(v) != 2)))

    try:
        return Preprocess(
            resize=draw(sizes),
            crop=draw(sizes),
            scale=per_channel(positive),
            mean=per_channel(anything),
            std=per_channel(positive),
            layout=draw(st.sampled_from(Layout)),
            color=color,
        )
    except SampleError as error:
        assume("does not fit" not in str(error))
        raise


@given(preprocesses())
@example(Preprocess(scale=(0.0174,)))  # near 1/57, and not it
@example(Preprocess(scale=(1 / 255,), mean=(1 / 128,)))  # only a scale may be a fraction
def test_text_round_trips(preprocess: Preprocess) -> None:
    assert Preprocess.parse(str(preprocess)) == preprocess


@pytest.mark.parametrize("text", ZOO_SPECS)
def test_the_text_that_users_write_comes_back_in_canonical_order(text: str) -> None:
    canonical = str(Preprocess.parse(text))
    assert str(Preprocess.parse(canonical)) == canonical
    assert all(part in canonical for part in text.split(","))


def test_a_scale_of_two_parts_is_a_fraction_and_of_three_is_per_channel() -> None:
    assert Preprocess.parse("scale=1/255").scale == (1 / 255,)
    assert Preprocess.parse("scale=0.1/0.2/0.3").scale == (0.1, 0.2, 0.3)


def test_keys_may_stand_in_any_order_with_spaces_and_lower_case_names() -> None:
    assert Preprocess.parse(" layout=nhwc, crop=8 ,resize=9") == Preprocess(9, 8, layout=Layout.NHWC)


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("", "not KEY=VALUE"),
        ("resize=256,", "not KEY=VALUE"),
        ("resize", "not KEY=VALUE"),
        ("resize=", "not KEY=VALUE"),
        ("resise=256", "did you mean 'resize'"),
        ("zoom=2", "known are resize, crop"),
        ("crop=8,crop=8", "twice"),
        ("resize=abc", "give pixels"),
        ("resize=-4", "give pixels"),
        ("resize=1x2x3", "give pixels"),
        ("resize=0", "between 1 and"),
        ("resize=99999999", "between 1 and"),
        ("crop=12.5", "give pixels"),
        ("resize=200,crop=224", "does not fit into resize=200"),
        ("resize=240x320,crop=300", "does not fit into resize=240x320"),
        ("scale=fast", "not a number"),
        ("scale=1/0", "division by zero"),
        ("scale=0", "must be positive"),
        ("scale=nan", "finite"),
        ("mean=1/2", "3 as a/b/c"),
        ("mean=1/2/3/4", "4 values"),
        ("mean=inf", "finite"),
        ("mean=1//3", "not a number"),
        ("std=0.2/0/0.2", "must be positive"),
        ("std=-1", "must be positive"),
        ("mean=1/2/3,color=GRAY", "give one value"),
        ("layout=HWC", "NCHW, NHWC"),
        ("color=CMYK", "RGB, BGR, GRAY"),
    ],
)
def test_bad_text_is_refused(text: str, fragment: str) -> None:
    with pytest.raises(SampleError) as caught:
        Preprocess.parse(text)
    assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_crop_that_fits_one_side_waits_for_the_image() -> None:
    preprocess = Preprocess.parse("resize=8,crop=8x16")
    assert preprocess(noise(8, 20)).shape == (1, 3, 8, 16)
    with pytest.raises(SampleError, match="crop=8x16 is larger than the image of 8x8"):
        preprocess(noise(8, 8))


# ---- arithmetic ------------------------------------------------------------------------------------------


def test_scale_then_mean_then_std() -> None:
    image = noise(5, 7)
    got = Preprocess.parse("scale=1/255,mean=0.4/0.5/0.6,std=0.1/0.2/0.3")(image)
    pixels = np.asarray(image).astype(np.float64)
    expected = ((pixels / 255 - [0.4, 0.5, 0.6]) / [0.1, 0.2, 0.3]).transpose(2, 0, 1)[np.newaxis]
    assert got.dtype == np.float32
    assert got.flags.c_contiguous
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("layout=NCHW", (1, 3, 5, 7)),
        ("layout=NHWC", (1, 5, 7, 3)),
        ("color=GRAY", (1, 1, 5, 7)),
        ("color=GRAY,layout=NHWC", (1, 5, 7, 1)),
    ],
)
def test_layouts(text: str, shape: tuple[int, ...]) -> None:
    assert Preprocess.parse(text)(noise(5, 7)).shape == shape


def test_bgr_turns_the_pixels_and_not_the_constants() -> None:
    image = Image.new("RGB", (1, 1), (10, 20, 30))
    assert Preprocess.parse("color=BGR,mean=1/2/3")(image).ravel().tolist() == [29, 18, 7]


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK"])
def test_every_8_bit_mode_becomes_rgb(mode: str) -> None:
    assert Preprocess.parse("layout=NHWC")(noise(4, 4).convert(mode)).shape == (1, 4, 4, 3)


def test_deeper_pixels_are_refused_instead_of_clipped() -> None:
    deep = Image.fromarray(np.full((4, 4), 40000, np.uint16))
    with pytest.raises(SampleError, match="deeper than 8 bits"):
        Preprocess.parse("crop=2")(deep)


# ---- geometry --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "height", "text", "shape"),
    [
        (151, 100, "resize=64", (64, 97)),  # 96.64 is rounded up
        (100, 151, "resize=64", (97, 64)),
        (145, 100, "resize=64", (64, 93)),  # 92.8
        (141, 100, "resize=64", (64, 90)),  # 90.24 is rounded down
        (3, 2, "resize=5", (5, 8)),  # 7.5 goes up, not to the even neighbour
        (30, 20, "resize=10x12", (10, 12)),
        (30, 20, "crop=10x12", (10, 12)),
    ],
)
def test_sizes(width: int, height: int, text: str, shape: tuple[int, int]) -> None:
    assert Preprocess.parse(text)(noise(height, width)).shape[2:] == shape


def test_the_crop_is_central() -> None:
    red, green = Preprocess.parse("crop=4x6")(stepped(width=20, height=10))[0, :2]
    assert red[0].tolist() == [7, 8, 9, 10, 11, 12]
    assert green[:, 0].tolist() == [3, 4, 5, 6]


def test_shrinking_is_antialiased() -> None:
    """Of a one-pixel checkerboard a sampling filter keeps pure pixels; an antialiased one averages to grey."""
    board = Image.fromarray((np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8))
    inner = Preprocess.parse("resize=16,crop=8,color=GRAY")(board)
    assert np.abs(inner - 127.5).max() < 3


def triangle(length: int, wanted: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Weights (wanted x length) of the bilinear filter, as wide as the step between two results."""
    step = length / wanted
    centres = (np.arange(wanted) + 0.5) * step
    distance = np.abs(np.arange(length) + 0.5 - centres[:, np.newaxis]) / step
    weights: np.ndarray[Any, np.dtype[np.float64]] = np.maximum(1 - distance, 0)
    weights /= weights.sum(axis=1, keepdims=True)
    return weights


@pytest.mark.parametrize(("height", "width"), [(48, 64), (33, 57)])
def test_shrinking_is_the_triangle_filter(height: int, width: int) -> None:
    image = noise(height, width)
    got = Preprocess.parse("resize=9x16,layout=NHWC")(image)[0]
    pixels = np.asarray(image).astype(np.float64)
    expected = np.einsum("ih,jw,hwc->ijc", triangle(height, 9), triangle(width, 16), pixels)
    assert np.abs(got - expected).max() <= 1.01  # two roundings to whole levels


def test_enlarging_is_bilinear() -> None:
    edge = Image.fromarray(np.array([[0, 100]], np.uint8))
    assert Preprocess.parse("resize=1x4,color=GRAY")(edge).ravel().tolist() == [0, 25, 75, 100]


def test_resizing_comes_before_the_crop() -> None:
    red = Preprocess.parse("resize=10,crop=10")(stepped(width=40, height=20))[0, 0]
    assert red.mean() == pytest.approx(19.5, abs=0.5)
    assert red[0, 0] == pytest.approx(10.5, abs=0.6)


def test_exif_orientation_is_applied_first() -> None:
    image = stepped(width=6, height=4)
    image.getexif()[0x0112] = 6  # shown turned by 90 degrees clockwise
    turned = Preprocess.parse("layout=NHWC")(image)
    assert turned.shape == (1, 6, 4, 3)
    np.testing.assert_array_equal(turned[0], np.rot90(np.asarray(stepped(6, 4)), -1))


def test_a_sliver_does_not_grow_without_bound() -> None:
    with pytest.raises(SampleError, match="resize=HxW"):
        Preprocess.parse("resize=4096")(Image.new("L", (1, 60_000)))
