"""The header of a safetensors file: an encoded header is parsed again, by our parser and by the library."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from plans.safetensors_header import (
    HEADER_BYTES,
    PREFIX_BYTES,
    HeaderError,
    TensorEntry,
    encode_header,
    header_length,
    parse_header,
)

NAMES = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8)


@st.composite
def tables(draw: st.DrawFn) -> list[TensorEntry]:
    """Draw tensors that follow one another, with distinct names."""
    tensors, offset = [], 0
    for name in draw(st.lists(NAMES, unique=True, max_size=5)):
        dtype, shape = draw(st.sampled_from(sorted(HEADER_BYTES))), draw(st.lists(st.integers(0, 3), max_size=3))
        nbytes = HEADER_BYTES[dtype]
        for size in shape:
            nbytes *= size
        tensors.append(TensorEntry(name=name, dtype=dtype, shape=tuple(shape), offset=offset, nbytes=nbytes))
        offset += nbytes
    return tensors


@given(tensors=tables(), alignment=st.sampled_from([1, 8, 256, 4096]))
def test_an_encoded_header_is_parsed_to_its_tensors(tensors: list[TensorEntry], alignment: int) -> None:
    raw = encode_header(tensors, {"device": "a"}, alignment)
    file_bytes = len(raw) + sum(tensor.nbytes for tensor in tensors)
    assert header_length(raw[:PREFIX_BYTES], file_bytes) == len(raw) - PREFIX_BYTES
    header = parse_header(raw[PREFIX_BYTES:], file_bytes)
    assert (header.data_start, header.metadata) == (len(raw), {"device": "a"})
    assert header.tensors == tensors, "in the order of the file"
    assert header.data_start % alignment == 0


def test_the_library_reads_an_encoded_header(tmp_path: Path) -> None:
    entry = TensorEntry(name="a", dtype="F32", shape=(2, 3), offset=0, nbytes=24)
    (tmp_path / "x").write_bytes(encode_header([entry], {"abi": "1"}, 4096) + bytes(24))
    with safe_open(tmp_path / "x", framework="pt") as file:
        assert file.metadata() == {"abi": "1"}
        assert file.get_tensor("a").shape == (2, 3)


def test_metadata_is_none_only_if_the_header_has_none() -> None:
    assert parse_header(b"{}", PREFIX_BYTES + 2).metadata is None
    assert parse_header(b'{"__metadata__":{}}', PREFIX_BYTES + 19).metadata == {}
    for metadata in (None, [], {"a": 1}):
        text = json.dumps({"__metadata__": metadata}).encode()
        with pytest.raises(HeaderError, match=r"^__metadata__: expected an object of strings$"):
            parse_header(text, PREFIX_BYTES + len(text))


def test_the_order_of_the_header_need_not_be_that_of_the_data() -> None:
    second = TensorEntry(name="b", dtype="U8", shape=(2,), offset=1, nbytes=2)
    first = TensorEntry(name="a", dtype="U8", shape=(1,), offset=0, nbytes=1)
    raw = encode_header([second, first], {}, 8)
    assert parse_header(raw[PREFIX_BYTES:], len(raw) + 3).tensors == [second, first]
