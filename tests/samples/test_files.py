"""Samples from files: .npz of arrays, folders of feeds, folders of images."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onnxslim.errors import SampleError
from onnxslim.samples import InputSpec, Preprocess, Samples, Source

FLOAT = np.dtype(np.float32)
IMAGE = InputSpec("x", FLOAT, ("N", 3, 8, 8))
TO_8 = "resize=8x8"


def rows(count: int, *shape: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)


def pixels(*shape: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def put_images(folder: Path, *names: str, size: tuple[int, int] = (10, 12)) -> Path:
    for index, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (index, 0, 0)).save(path)
    return folder


def origins(samples: Samples) -> list[str]:
    return [sample.origin for sample in samples]


# ---- one .npz --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["mapped", "unpacked"])
def test_arrays_are_fed_one_row_at_a_time(tmp_path: Path, save: Callable[..., None]) -> None:
    a, b = rows(5, 3, 4), np.asfortranarray(np.arange(10, dtype=np.int64).reshape(5, 2))
    save(tmp_path / "calib.npz", a=a, b=b, labels=np.arange(5, dtype=np.uint8))
    samples = Samples.from_path(tmp_path / "calib.npz")
    bound = samples.for_inputs([InputSpec("b", np.dtype(np.int64), (None, 2)), InputSpec("a", FLOAT, (1, 3, 4))])

    assert (len(bound), bound.labelled, bound.source) == (5, True, Source.DATA)
    for _ in range(2):
        for index, sample in enumerate(bound):
            np.testing.assert_array_equal(sample.feed["a"], a[index : index + 1])
            np.testing.assert_array_equal(sample.feed["b"], b[index : index + 1])
            assert (sample.label, sample.origin) == (index, f"calib.npz[{index}]")
            assert list(sample.feed) == ["b", "a"]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["mapped", "unpacked"])
def test_writing_into_a_feed_does_not_reach_the_data(tmp_path: Path, save: Callable[..., None]) -> None:
    save(tmp_path / "a.npz", x=rows(3, 2))
    samples = Samples.from_path(tmp_path / "a.npz")
    before = [sample.feed["x"].copy() for sample in samples]
    for sample in samples:
        sample.feed["x"][:] = 7
    for sample, old in zip(samples, before, strict=True):
        np.testing.assert_array_equal(sample.feed["x"], old)


@pytest.mark.parametrize("shape", [(4, 9, 11, 3), (4, 9, 11, 1), (4, 9, 11, 4), (4, 3, 9, 11), (4, 9, 11)])
def test_uint8_images_go_through_the_preprocessing(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.savez(tmp_path / "a.npz", images=pixels(*shape))
    samples = Samples.from_path(tmp_path / "a.npz", preprocess=TO_8).for_inputs([IMAGE])
    assert [s.feed["x"].shape for s in samples] == [(1, 3, 8, 8)] * 4


def test_uint8_pixels_arrive_as_they_are(tmp_path: Path) -> None:
    images = pixels(3, 8, 8, 3)
    np.savez(tmp_path / "last.npz", images=images)
    np.savez(tmp_path / "first.npz", images=images.transpose(0, 3, 1, 2))
    for name in ("last.npz", "first.npz"):
        samples = Samples.from_path(tmp_path / name, preprocess="scale=1/255")
        got = np.concatenate([s.feed["images"] for s in samples])
        np.testing.assert_allclose(got, images.transpose(0, 3, 1, 2) / 255, atol=1e-6)


def test_floats_are_taken_as_they_are_even_with_a_preprocessing(tmp_path: Path) -> None:
    x = rows(2, 3, 8, 8)
    np.savez(tmp_path / "a.npz", images=x)
    samples = Samples.from_path(tmp_path / "a.npz", preprocess="resize=4,mean=9").for_inputs([IMAGE])
    np.testing.assert_array_equal(next(iter(samples)).feed["x"], x[:1])


def test_the_memory_of_a_mapped_file_is_one_row(tmp_path: Path) -> None:
    np.savez(tmp_path / "big.npz", x=np.zeros((200, 3, 100, 100), np.float32))  # 24 MB
    tracemalloc.start()
    seen = sum(sample.feed["x"].nbytes for sample in Samples.from_path(tmp_path / "big.npz"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen == 24_000_000
    assert peak < 2_000_000


def test_preprocessing_happens_one_image_at_a_time(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros((100, 16, 16, 3), np.uint8))
    samples = Samples.from_path(tmp_path / "a.npz", preprocess="resize=128")  # 20 MB as floats
    tracemalloc.start()
    count = sum(1 for _ in samples)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 100
    assert peak < 3_000_000


def bad_zip(path: Path, name: str, content: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, content)


def lying_header(path: Path) -> None:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": (10**12,)})
    bad_zip(path, "x.npy", stream.getvalue() + b"\0" * 64)


@pytest.mark.parametrize(
    ("write", "fragment"),
    [
        (lambda p: np.savez(p, images=pixels(2, 8, 8, 3)), "--preprocess"),
        (lambda p: np.savez(p, x=np.array([{}, {}])), "pickled objects"),
        (lambda p: np.savez(p, x=np.zeros(3, [("a", "f4")])), "structured"),
        (lambda p: np.savez(p, x=rows(3, 2), y=rows(4, 2)), "'x' has 3 samples and 'y' has 4"),
        (lambda p: np.savez(p, x=np.float32(3)), "'x' is a scalar"),
        (lambda p: np.savez(p, x=rows(0, 2)), "no sample"),
        (lambda p: np.savez(p, labels=np.arange(3)), "no array for an input"),
        (lambda p: np.savez(p, x=rows(3, 2), labels=np.arange(4)), "3 integers, one per sample"),
        (lambda p: np.savez(p, x=rows(3, 2), labels=np.arange(3.0)), "3 integers, one per sample"),
        (lambda p: np.savez(p, x=rows(3, 2), labels=np.zeros((3, 1), int)), "3 integers, one per sample"),
        (lambda p: p.write_bytes(b"PK\x03\x04 nonsense"), "cannot be read as an .npz"),
        (lambda p: p.write_bytes(b""), "cannot be read as an .npz"),
        (lambda p: bad_zip(p, "x.npy", b"\x93NUMPY\x01\x00\x05\x00{[((("), "cannot be read as an .npz"),
        (lambda p: bad_zip(p, "readme.txt", b"hello"), "is not an array"),
        (lying_header, "not as long as its header says"),
    ],
)
def test_a_bad_npz_is_refused_on_opening(tmp_path: Path, write: Callable[[Path], object], fragment: str) -> None:
    path = tmp_path / "data.npz"
    write(path)
    with pytest.raises(SampleError) as caught:
        Samples.from_path(path)
    assert str(caught.value).startswith("data.npz")
    assert fragment in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_damage_inside_an_array_is_found_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=rows(50, 20))
    content = bytearray(path.read_bytes())
    content[600:700] = bytes(100)
    path.write_bytes(content)
    samples = Samples.from_path(path)
    with pytest.raises(SampleError, match=r"a\.npz cannot be read"):
        next(iter(samples))


# ---- a folder of .npz ------------------------------------------------------------------------------------


def test_every_file_is_one_feed_as_it_stands(tmp_path: Path) -> None:
    np.savez(tmp_path / "b.npz", x=rows(4, 2, seed=1), n=np.int64(7))
    np.savez(tmp_path / "a.npz", x=rows(3, 2), n=np.int64(5), label=np.int64(2))
    specs = [InputSpec("x", FLOAT, ("N", 2)), InputSpec("n", np.dtype(np.int64), ())]
    samples = Samples.from_path(tmp_path).for_inputs(specs)
    first, second = samples
    assert (first.feed["x"].shape, first.feed["n"].tolist(), first.label) == ((3, 2), 5, 2)
    assert (second.feed["x"].shape, second.feed["n"].tolist(), second.label) == ((4, 2), 7, None)
    assert first.origin == f"{tmp_path.name}/a.npz"
    assert samples.labelled


def test_a_feed_with_many_labels_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=rows(3, 2), labels=np.arange(3))
    with pytest.raises(SampleError, match="one integer per sample"):
        list(Samples.from_path(tmp_path))


# ---- a folder of images ----------------------------------------------------------------------------------


def test_images_are_found_at_any_depth_in_order_of_name(tmp_path: Path) -> None:
    names = ("b.png", "a.JPG", "cats/z.webp", "cats/y.gif", "c.bmp", "d.tif", "e.jpeg")
    put_images(tmp_path, *names)
    put_images(tmp_path, ".hidden.png", ".cache/x.png")
    (tmp_path / "notes.txt").write_text("not an image")
    samples = Samples.from_path(tmp_path, preprocess=TO_8).for_inputs([IMAGE])
    assert origins(samples) == [f"{tmp_path.name}/{name}" for name in sorted(names)]
    assert not samples.labelled
    assert samples.description == f"7 samples of {tmp_path.name}/ (resize=8x8,layout=NCHW,color=RGB)"


def test_labels_come_from_the_csv(tmp_path: Path) -> None:
    put_images(tmp_path, "a.png", "b.png", "dogs/c.png", "d.png")
    text = '\ufefflabel, name, file\n3,x,a.png\n5,"y, z",./dogs/c.png\n,w,d.png\n'
    (tmp_path / "labels.csv").write_text(text, encoding="utf-8")
    samples = Samples.from_path(tmp_path, preprocess=TO_8)
    assert [sample.label for sample in samples] == [3, None, None, 5]
    assert samples.labelled
    assert not samples.take(3).shuffled(0).take(3).split().held_out


def test_the_first_frame_of_an_animation_counts(tmp_path: Path) -> None:
    frames = [Image.new("L", (4, 4), value) for value in (50, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    (sample,) = Samples.from_path(tmp_path, preprocess="color=GRAY")
    assert sample.feed["images"].mean() == 50


def test_a_photograph_is_turned_by_its_exif(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (12, 8)).save(tmp_path / "a.jpg", exif=exif)
    (sample,) = Samples.from_path(tmp_path, preprocess="layout=NCHW")
    assert sample.feed["images"].shape == (1, 3, 12, 8)


def test_nothing_is_decoded_on_opening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_images(tmp_path, "a.png", "b.png")
    (tmp_path / "labels.csv").write_text("file,label\na.png,1\n")
    opened: list[Path] = []
    original = Image.open

    def watched(path: Path, formats: tuple[str, ...]) -> Image.Image:
        opened.append(path)
        return original(path, formats=formats)

    monkeypatch.setattr(Image, "open", watched)
    samples = Samples.from_path(tmp_path, preprocess=TO_8, limit=1)
    assert (len(samples), len(samples.take(1)), opened) == (1, 1, [])
    next(iter(samples))
    assert len(opened) == 1


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("file,label\na.png,1\ngone.png,2\nlost.png,3\n", "line 3 names 'gone.png', which is missing"),
        ("file,label\n../a.png,1\n", "inside it"),
        ("file,label\nsub/../a.png,1\n", "inside it"),
        ("file,label\n/etc/passwd,1\n", "inside it"),
        ("file,label\nC:\\a.png,1\n", "inside it"),
        ("file,label\n,1\n", "inside it"),
        ("file,label\nlabels.csv,1\n", "not an image"),
        ("file,label\na.png,cat\n", "label 'cat'"),
        ("file,label\na.png,1.0\n", "label '1.0'"),
        ("file,label\na.png,1\na.png,2\n", "labels 'a.png' 2 after 1"),
        ("name,label\na.png,1\n", "no column 'file'"),
        ("file,class\na.png,1\n", "no column 'label'"),
        ("", "no column 'file'"),
    ],
)
def test_a_bad_csv_is_refused_on_opening(tmp_path: Path, text: str, fragment: str) -> None:
    put_images(tmp_path, "a.png")
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(SampleError) as caught:
        Samples.from_path(tmp_path, preprocess=TO_8)
    assert f"{tmp_path.name}/labels.csv" in str(caught.value)
    assert fragment in str(caught.value)


def test_a_csv_that_is_no_text_is_refused(tmp_path: Path) -> None:
    put_images(tmp_path, "a.png")
    (tmp_path / "labels.csv").write_bytes(b"file,label\n\xff\xfe,1\n")
    with pytest.raises(SampleError, match="UTF-8"):
        Samples.from_path(tmp_path, preprocess=TO_8)


@pytest.mark.parametrize("what", ["x.png", "sub"])
def test_links_out_of_the_folder_are_refused(tmp_path: Path, what: str) -> None:
    outside = put_images(tmp_path / "outside", "secret.png")
    folder = put_images(tmp_path / "data", "a.png")
    (folder / what).symlink_to(outside / "secret.png" if what == "x.png" else outside)
    with pytest.raises(SampleError, match=f"data/{what} is a link that leads out"):
        Samples.from_path(folder, preprocess=TO_8)


def test_links_inside_the_folder_are_read(tmp_path: Path) -> None:
    put_images(tmp_path, "a.png")
    (tmp_path / "b.png").symlink_to("a.png")
    assert len(list(Samples.from_path(tmp_path, preprocess=TO_8))) == 2


def truncated(path: Path) -> None:
    Image.fromarray(pixels(64, 64, 3)).save(path)
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize(
    "write",
    [
        lambda p: p.write_bytes(b""),
        lambda p: p.write_bytes(b"GIF89a"),
        lambda p: p.write_text("hello"),
        truncated,
    ],
    ids=["empty", "header", "text", "truncated"],
)
def test_an_unreadable_image_is_named(tmp_path: Path, write: Callable[[Path], object]) -> None:
    put_images(tmp_path, "a.png")
    write(tmp_path / "broken.png")
    samples = Samples.from_path(tmp_path, preprocess=TO_8)
    with pytest.raises(SampleError, match=f"^{tmp_path.name}/broken.png: the image cannot be") as caught:
        list(samples)
    assert str(tmp_path.parent) not in str(caught.value)


@pytest.mark.parametrize("pixels_allowed", [60, 100], ids=["error", "warning"])
def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pixels_allowed: int) -> None:
    put_images(tmp_path, "a.png", size=(11, 12))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels_allowed)
    with pytest.raises(SampleError, match=r"a\.png: the image is too large to decode safely"):
        list(Samples.from_path(tmp_path, preprocess=TO_8))


def test_an_image_smaller_than_the_crop_is_named(tmp_path: Path) -> None:
    put_images(tmp_path, "a.png")
    with pytest.raises(SampleError, match=r"a\.png: crop=64 is larger than the image of 12x10"):
        list(Samples.from_path(tmp_path, preprocess="crop=64"))


# ---- what a path is --------------------------------------------------------------------------------------


def test_a_path_that_is_no_samples_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    np.save(tmp_path / "a.npy", rows(2))
    put_images(tmp_path / "pictures", "a.png")
    mixed = put_images(tmp_path / "mixed", "a.png")
    np.savez(mixed / "a.npz", x=rows(2))
    for place, fragment in (
        ("empty", "holds no sample"),
        ("a.npy", "give an .npz"),
        ("pictures", "--preprocess"),
        ("mixed", "both images and .npz"),
        ("nowhere", "no samples at"),
    ):
        with pytest.raises(SampleError) as caught:
            Samples.from_path(tmp_path / place)
        assert fragment in str(caught.value)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(tmp_path: Path, limit: int) -> None:
    np.savez(tmp_path / "a.npz", x=rows(5, 2))
    with pytest.raises(SampleError, match="at least one"):
        Samples.from_path(tmp_path / "a.npz", limit=limit)


def test_a_limit_draws_by_seed(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=rows(100, 2))
    path = tmp_path / "a.npz"
    drawn = Samples.from_path(path, limit=10, seed=1)
    assert origins(drawn) == origins(Samples.from_path(path, limit=10, seed=1)) == origins(drawn)
    assert origins(drawn) != origins(Samples.from_path(path, limit=10, seed=2))
    assert origins(drawn) != origins(Samples.from_path(path).take(10))
    assert origins(Samples.from_path(path, limit=100)) == origins(Samples.from_path(path))
    assert drawn.description == "10 of 100 samples of a.npz"


def test_a_parsed_preprocessing_is_taken_too(tmp_path: Path) -> None:
    put_images(tmp_path, "a.png")
    (sample,) = Samples.from_path(tmp_path, preprocess=Preprocess(resize=(8, 8)))
    assert sample.feed["images"].shape == (1, 3, 8, 8)
