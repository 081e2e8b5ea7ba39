"""Reads or writes a GGUF file with the Python package `gguf`, for python_gguf.rs.

    python_gguf.py dump FILE...   prints each file's entries and tensors, with checksums
    python_gguf.py write FILE     writes a file with every value type that the package can write
"""

import sys
import zlib

try:
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
except ImportError as e:
    print("missing:", e)
    sys.exit(77)


def dump(path):
    reader = GGUFReader(path)
    print("file", reader.alignment)
    for key, field in reader.fields.items():
        if key.startswith("GGUF."):
            continue
        is_str = field.types[-1] == GGUFValueType.STRING
        crc = 0
        for i in field.data:
            raw = field.parts[i].tobytes()
            if is_str:
                raw = len(raw).to_bytes(8, "little") + raw
            crc = zlib.crc32(raw, crc)
        types = ",".join(str(int(t)) for t in field.types)
        print("key", key.encode().hex(), types, len(field.data), crc)
    for t in reader.tensors:
        shape = ",".join(str(int(d)) for d in t.shape)
        crc = zlib.crc32(np.ascontiguousarray(t.data).tobytes())
        print("tensor", t.name.encode().hex(), int(t.tensor_type), shape, crc)


def write(path):
    w = GGUFWriter(path, "test")
    w.add_custom_alignment(64)
    w.add_uint8("a.u8", 255)
    w.add_int8("a.i8", -128)
    w.add_uint16("a.u16", 65535)
    w.add_int16("a.i16", -32768)
    w.add_uint32("a.u32", 2**32 - 1)
    w.add_int32("a.i32", -(2**31))
    w.add_float32("a.f32", 0.1)
    w.add_uint64("a.u64", 2**64 - 1)
    w.add_int64("a.i64", -(2**63))
    w.add_float64("a.f64", 0.1)
    w.add_bool("a.true", True)
    w.add_bool("a.false", False)
    w.add_string("a.str", "größer 🦀\n")
    w.add_array("b.i32", [1, -2, 3])
    w.add_array("b.f32", [0.5, float("inf")])
    w.add_array("b.bool", [True, False])
    w.add_array("b.str", ["one", "zwölf", "three"])
    w.add_tensor("t.f32", np.arange(15, dtype=np.float32).reshape(3, 5))
    w.add_tensor("t.f16", np.arange(7, dtype=np.float16))
    w.add_tensor("t.i8", np.arange(24, dtype=np.int8).reshape(2, 3, 4))
    rows = (np.arange(4 * 34) % 251).astype(np.uint8).reshape(2, 68)
    w.add_tensor("t.q8_0", rows, raw_dtype=GGMLQuantizationType.Q8_0)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


if sys.argv[1] == "dump":
    for path in sys.argv[2:]:
        dump(path)
else:
    write(sys.argv[2])
