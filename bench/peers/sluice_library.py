"""libsluice.so through its C interface (sluice/engine/capi/sluice.h), without numpy."""
import ctypes
import glob
import os

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Options(ctypes.Structure):
    _fields_ = [("batch", ctypes.c_int64), ("threads", ctypes.c_int32), ("verify_checksums", ctypes.c_int32),
                ("sequences", ctypes.c_int32), ("last_rows", ctypes.c_int64)]


def library():
    path = os.environ.get("SLUICE_LIBRARY")
    if not path:
        found = [p for build in ("release", "engine-only")
                 for p in sorted(glob.glob(f"{ROOT}/build/{build}/lib/**/libsluice.so", recursive=True))]
        if not found:
            raise SystemExit("no libsluice.so; build it: scripts/build.sh engine-only")
        path = found[0]
    return ctypes.CDLL(path)


class Network:
    def __init__(self, path, batch, threads, last_rows=0, sequences=True):
        self.lib = library()
        self.lib.sluice_last_error.restype = ctypes.c_char_p
        self.handle = ctypes.c_void_p()
        self.check(self.lib.sluice_load(os.fsencode(path), ctypes.byref(Options(batch, threads, 0, int(sequences), last_rows)),
                                        ctypes.byref(self.handle)))

    def check(self, status):
        if status != 0:
            raise RuntimeError(self.lib.sluice_last_error().decode())

    def prepare(self, samples, outputs):
        """A call without arguments: samples are lists of ids; `outputs` floats come out, in self.output."""
        flat = [float(i) for ids in samples for i in ids]
        inputs = (ctypes.c_float * len(flat))(*flat)
        tokens = (ctypes.c_int64 * len(samples))(*[len(ids) for ids in samples])
        self.output = (ctypes.c_float * outputs)()
        output, run, handle = self.output, self.lib.sluice_run_tokens, self.handle
        arguments = (handle, inputs, ctypes.c_size_t(len(flat)), output, ctypes.c_size_t(outputs), tokens,
                     ctypes.c_int64(len(samples)))
        return lambda: self.check(run(*arguments))

    def run(self, x, output):
        """Of a network without sequences, one sample; both are numpy arrays of float32."""
        floats = ctypes.POINTER(ctypes.c_float)
        self.check(self.lib.sluice_run(self.handle, x.ctypes.data_as(floats), ctypes.c_size_t(x.size),
                                       output.ctypes.data_as(floats), ctypes.c_size_t(output.size), ctypes.c_int64(1)))
        return output

    def reset(self):
        self.check(self.lib.sluice_reset(self.handle))
