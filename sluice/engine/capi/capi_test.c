/* The C interface used from C, as an embedder would: capi_test <bundle>. Exit code 0 when
 * everything holds. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "sluice/engine/capi/sluice.h"

static int failures = 0;

#define CHECK(condition)                                                                 \
  do {                                                                                   \
    if (!(condition)) {                                                                  \
      fprintf(stderr, "%s:%d: %s does not hold; last error: '%s'\n", __FILE__, __LINE__, \
              #condition, sluice_last_error());                                          \
      ++failures;                                                                        \
    }                                                                                    \
  } while (0)

static int says(const char* text) { return strstr(sluice_last_error(), text) != NULL; }

static void check_run(sluice_network* network) {
  const float input[6] = {1, -1, 2, 0, 0.5f, 1};
  const float expected[4] = {5.5f, 0, 4.5f, 0.25f};
  float output[4] = {-1, -1, -1, -1};
  CHECK(sluice_run(network, input, 6, output, 4, 2) == SLUICE_OK);
  CHECK(strcmp(sluice_last_error(), "") == 0);
  for (int i = 0; i < 4; ++i) CHECK(fabsf(output[i] - expected[i]) < 1e-6f);

  output[2] = -1;
  CHECK(sluice_run(network, input, 3, output, 2, 1) == SLUICE_OK);
  CHECK(output[2] == -1); /* one sample asked for, one written */
}

static void check_wrong_sizes(sluice_network* network) {
  const float input[9] = {0};
  float output[6];
  CHECK(sluice_run(network, input, 5, output, 4, 2) == SLUICE_SHAPE);
  CHECK(says("input") && says("5"));
  CHECK(sluice_run(network, input, 6, output, 3, 2) == SLUICE_SHAPE);
  CHECK(says("output"));
  CHECK(sluice_run(network, input, 9, output, 6, 3) == SLUICE_SHAPE); /* beyond the batch */
  CHECK(sluice_run(network, input, 3, output, 2, -1) == SLUICE_SHAPE);
}

static void check_sizes(sluice_network* network) {
  const float input[3] = {0, 0.5f, 1};
  float output[2] = {-1, -1};
  CHECK(strcmp(sluice_size_name(network, 0), "small") == 0);
  CHECK(sluice_size_name(network, 2) == NULL && sluice_size_name(network, -1) == NULL);
  CHECK(sluice_choose_size(network, "small") == SLUICE_OK);
  CHECK(sluice_run(network, input, 3, output, 2, 1) == SLUICE_OK);
  CHECK(output[0] == 4.5f && output[1] == 0); /* the second row is left out */
  CHECK(sluice_choose_size(network, "smal") == SLUICE_USAGE && says("did you mean 'small'"));
  CHECK(sluice_run(network, input, 3, output, 2, 1) == SLUICE_OK && output[1] == 0);
  CHECK(sluice_choose_size(network, NULL) == SLUICE_OK);
  CHECK(sluice_run(network, input, 3, output, 2, 1) == SLUICE_OK && output[1] == 0.25f);
}

static void check_null(sluice_network* network, const char* path) {
  float value[6] = {0};
  sluice_info info;
  CHECK(sluice_load(NULL, NULL, &network) == SLUICE_USAGE && says("path"));
  CHECK(network == NULL);
  CHECK(sluice_load(path, NULL, NULL) == SLUICE_USAGE && says("network"));
  CHECK(sluice_query(NULL, &info) == SLUICE_USAGE && says("network"));
  CHECK(sluice_run(NULL, value, 3, value, 2, 1) == SLUICE_USAGE);
  CHECK(sluice_label(NULL, 0) == NULL);
  CHECK(sluice_size_name(NULL, 0) == NULL);
  CHECK(sluice_choose_size(NULL, "small") == SLUICE_USAGE);
  sluice_free(NULL);
}

static void check_tokens(const char* classifier) {
  char path[4096];
  sluice_network* network = NULL;
  sluice_options options = {0};
  const float input[6] = {1, 2, 3, 4, 5, 6};
  const int64_t tokens[2] = {1, 2}, many[2] = {1, 5};
  float output[2] = {0, 0};
  snprintf(path, sizeof path, "%s.rows", classifier);
  CHECK(sluice_load(path, NULL, &network) == SLUICE_OK);
  CHECK(sluice_run_tokens(network, input, 6, output, 2, tokens, 2) == SLUICE_STATE);
  sluice_free(network);
  options.batch = 2;
  options.sequences = 1;
  CHECK(sluice_load(path, &options, &network) == SLUICE_OK);
  CHECK(sluice_run_tokens(network, input, 6, output, 2, tokens, 2) == SLUICE_OK);
  CHECK(output[0] == 21 && output[1] == 65); /* the last row of each */
  CHECK(sluice_reset(network) == SLUICE_OK);
  CHECK(sluice_run_tokens(network, input, 6, output, 2, many, 2) == SLUICE_SHAPE && says("5"));
  CHECK(sluice_run_tokens(network, input, 5, output, 2, tokens, 2) == SLUICE_SHAPE);
  CHECK(sluice_run_tokens(network, input, 6, output, 2, tokens, -1) == SLUICE_SHAPE);
  CHECK(sluice_run_tokens(network, input, 6, output, 2, NULL, 2) == SLUICE_USAGE);
  CHECK(sluice_run_tokens(NULL, input, 6, output, 2, tokens, 2) == SLUICE_USAGE);
  CHECK(sluice_reset(NULL) == SLUICE_USAGE);
  sluice_free(network);
}

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  check_tokens(argv[1]);
  CHECK(strlen(sluice_version()) > 0);

  sluice_network* network = NULL;
  CHECK(sluice_load("/nonexistent/model.safetensors", NULL, &network) == SLUICE_MISSING);
  CHECK(says("/nonexistent/model.safetensors"));
  CHECK(network == NULL);

  sluice_options options = {.batch = -1, .threads = 1, .verify_checksums = 1};
  CHECK(sluice_load(argv[1], &options, &network) == SLUICE_USAGE);
  options.batch = 2;
  CHECK(sluice_load(argv[1], &options, &network) == SLUICE_OK);
  if (network == NULL) return 1;

  sluice_info info;
  CHECK(sluice_query(network, &info) == SLUICE_OK);
  CHECK(info.input_elements == 3 && info.output_elements == 2);
  CHECK(info.input_rank == 1 && info.input_shape[0] == 3);
  CHECK(info.parameters == 8 && info.macs == 6);
  CHECK(info.file_bytes > 0 && info.label_count == 2);
  CHECK(strcmp(sluice_label(network, 1), "right") == 0);
  CHECK(sluice_label(network, 2) == NULL && sluice_label(network, -1) == NULL);
  CHECK(sluice_query(network, NULL) == SLUICE_USAGE);
  CHECK(sluice_run(network, NULL, 3, NULL, 2, 1) == SLUICE_USAGE && says("input"));

  check_run(network);
  check_wrong_sizes(network);
  check_sizes(network);
  check_null(NULL, argv[1]);
  check_run(network); /* failures leave it usable */
  sluice_free(network);
  return failures == 0 ? 0 : 1;
}
