# cmake -DOUT=commit.cpp -DROOT=<source> [-DCOMMIT=<given>] -P commit.cmake: the commit the sources are at, for reports.
# Only the folders that a report depends on decide whether it is dirty.
set(commit "${COMMIT}")
if(NOT commit)
  execute_process(COMMAND git -C ${ROOT} rev-parse --short=12 HEAD OUTPUT_VARIABLE commit
    OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
  if(failed)
    set(commit "unknown")
  else()
    execute_process(COMMAND git -C ${ROOT} status --porcelain --untracked-files=no -- sluice recipes cli cmake CMakeLists.txt
      OUTPUT_VARIABLE changes ERROR_QUIET)
    if(changes)
      string(APPEND commit "-dirty")
    endif()
  endif()
endif()
file(WRITE ${OUT}.new "#include \"sluice/base/origin.h\"\nstd::string sluice::build_commit() { return \"${commit}\"; }\n")
file(COPY_FILE ${OUT}.new ${OUT} ONLY_IF_DIFFERENT)
file(REMOVE ${OUT}.new)
