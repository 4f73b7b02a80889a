# cmake -DBUILD=... -DPREFIX=... -DLIBDIR=... -DCC=... -DPKG_CONFIG=... -DEXAMPLE=... -DBUNDLE=... -P install_test.cmake:
# what `cmake --install` puts down is enough to run the command line and to build and run a C program.
function(run)
  execute_process(COMMAND ${ARGN} OUTPUT_VARIABLE out ERROR_VARIABLE err RESULT_VARIABLE status
    OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(NOT status EQUAL 0)
    string(JOIN " " command ${ARGN})
    message(FATAL_ERROR "${command}: ${status}\n${out}\n${err}")
  endif()
  set(out "${out}" PARENT_SCOPE)
endfunction()

file(REMOVE_RECURSE ${PREFIX})
run(${CMAKE_COMMAND} --install ${BUILD} --prefix ${PREFIX})
run(${PREFIX}/bin/sluice --version)

set(ENV{PKG_CONFIG_PATH} ${PREFIX}/${LIBDIR}/pkgconfig)
run(${PKG_CONFIG} --cflags --libs sluice)
separate_arguments(flags UNIX_COMMAND "${out}")
run(${CC} -std=c11 -Wall -Wextra -Werror ${EXAMPLE} ${flags} -o ${PREFIX}/example)
set(ENV{LD_LIBRARY_PATH} ${PREFIX}/${LIBDIR})
run(${PREFIX}/example ${BUNDLE})
if(NOT out STREQUAL "left 0.5\nright 0")
  message(FATAL_ERROR "the example printed: ${out}")
endif()
file(REMOVE_RECURSE ${PREFIX})
