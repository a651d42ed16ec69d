-- Lmod: copy to MODULEPATH as rankslice/0.1.0.lua. `root` is where `cmake --install build/release --prefix` put it.
local root = "/opt/rankslice/0.1.0"

whatis("Name: rankslice")
whatis("Version: 0.1.0")
whatis("Description: loads Mixture-of-Experts checkpoints onto many ranks, and writes them back")

-- The MPI and the HDF5 that it was built with: ranks find each other only through that MPI's own mpirun.
depends_on("openmpi", "hdf5")

prepend_path("PATH", pathJoin(root, "bin"))
prepend_path("CMAKE_PREFIX_PATH", root)
prepend_path("PKG_CONFIG_PATH", pathJoin(root, "lib/pkgconfig"))
setenv("RANKSLICE_ROOT", root)
