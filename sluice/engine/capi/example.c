/* Runs a bundle on one sample of zeros and prints what comes out.
 *
 *   cc example.c $(pkg-config --cflags --libs sluice) -o example && ./example model.safetensors
 */
#include <stdio.h>
#include <stdlib.h>

#include <sluice/engine/capi/sluice.h>

static int failed(const char* what) {
  fprintf(stderr, "%s: %s\n", what, sluice_last_error());
  return 1;
}

int main(int argc, char** argv) {
  if (argc != 2) {
    fprintf(stderr, "usage: %s MODEL.safetensors\n", argv[0]);
    return 2;
  }
  sluice_network* network = NULL;
  if (sluice_load(argv[1], NULL, &network) != SLUICE_OK) return failed(argv[1]);

  sluice_info info;
  if (sluice_query(network, &info) != SLUICE_OK) return failed("query");
  float* input = calloc((size_t)info.input_elements, sizeof(float));
  float* output = calloc((size_t)info.output_elements, sizeof(float));
  if (input == NULL || output == NULL) return 1;
  if (sluice_run(network, input, (size_t)info.input_elements, output, (size_t)info.output_elements,
                 1) != SLUICE_OK) {
    return failed("run");
  }
  for (int64_t i = 0; i < info.output_elements; ++i) {
    const char* label = sluice_label(network, i);
    printf("%s %g\n", label != NULL ? label : "output", output[i]);
  }
  free(input);
  free(output);
  sluice_free(network);
  return 0;
}
