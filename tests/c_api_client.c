/* Boxes that a SavedModel finds in image files, by TensorFlow's C API alone.
   usage: c_api_client SAVED_MODEL IMAGE_BYTES NUM_DETECTIONS BOXES FILE...
   where the names are those of the signature's tensors. Prints a line for each file: the count and
   4 numbers a box, or "error" and its code. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tensorflow/c/c_api.h>
#include <tensorflow/c/tf_tstring.h>

static TF_Output output(TF_Graph* graph, const char* name) {
  char operation[512];
  const char* colon = strrchr(name, ':');
  snprintf(operation, sizeof operation, "%.*s", (int)(colon - name), name);
  TF_Output found = {TF_GraphOperationByName(graph, operation), atoi(colon + 1)};
  return found;
}

static TF_Tensor* read_file(const char* path) { /* string [1] */
  static char bytes[1 << 20];
  FILE* file = fopen(path, "rb");
  size_t size = fread(bytes, 1, sizeof bytes, file);
  fclose(file);
  const int64_t one = 1;
  TF_Tensor* tensor = TF_AllocateTensor(TF_STRING, &one, 1, sizeof(TF_TString));
  TF_StringInit(TF_TensorData(tensor));
  TF_StringCopy(TF_TensorData(tensor), bytes, size);
  return tensor;
}

int main(int argc, char** argv) {
  TF_Status* status = TF_NewStatus();
  TF_Graph* graph = TF_NewGraph();
  const char* tags[] = {"serve"};
  TF_Session* session = TF_LoadSessionFromSavedModel(TF_NewSessionOptions(), NULL, argv[1], tags, 1,
                                                     graph, NULL, status);
  if (TF_GetCode(status) != TF_OK) return fprintf(stderr, "%s\n", TF_Message(status)), 1;
  TF_Output input = output(graph, argv[2]);
  TF_Output wanted[] = {output(graph, argv[3]), output(graph, argv[4])};
  for (int i = 5; i < argc; i++) {
    TF_Tensor *image = read_file(argv[i]), *found[2] = {NULL, NULL};
    TF_SessionRun(session, NULL, &input, &image, 1, wanted, found, 2, NULL, 0, NULL, status);
    if (TF_GetCode(status) != TF_OK) {
      printf("error %d\n", TF_GetCode(status));
      fprintf(stderr, "%s\n", TF_Message(status));
      continue;
    }
    int count = *(int*)TF_TensorData(found[0]);
    const float* boxes = TF_TensorData(found[1]);
    printf("%d", count);
    for (int j = 0; j < 4 * count; j++) printf(" %.9g", boxes[j]);
    printf("\n");
  }
  return 0;
}
