from spack.package import *


class Rankslice(CMakePackage, CudaPackage):
    """Loads Mixture-of-Experts checkpoints onto many ranks, each reading only its slice, proves with collectives that
    together they hold the checkpoint, and writes it back byte for byte."""

    license("Apache-2.0")

    version("0.1.0")

    depends_on("c", type="build")
    depends_on("cxx", type="build")
    depends_on("cmake@3.25:", type="build")
    depends_on("ninja", type="build")
    depends_on("pkgconfig", type="build")

    depends_on("mpi")
    depends_on("hdf5")
    depends_on("simdjson")
    depends_on("nlohmann-json")
    depends_on("cli11")
    depends_on("fmt")
    depends_on("xxhash")
    depends_on("highway")
    depends_on("pcre2")
    depends_on("openssl")
    depends_on("liburing")
    depends_on("nccl@2.28:", when="+cuda")

    conflicts("%gcc@:11", msg="C++20 as gcc 12 has it")

    generator("ninja")

    def cmake_args(self):
        return [
            self.define_from_variant("RANKSLICE_CUDA", "cuda"),
            self.define("RANKSLICE_TORCH", False),
            self.define("RANKSLICE_PYTHON", False),
            self.define("RANKSLICE_TESTS", False),
            *self.cuda_architectures(),
        ]

    def cuda_architectures(self):
        chosen = self.spec.variants["cuda_arch"].value if self.spec.satisfies("+cuda") else ("none",)
        return [] if "none" in chosen else [self.define("CMAKE_CUDA_ARCHITECTURES", chosen)]
