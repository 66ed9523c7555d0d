import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Locale;
import java.util.Map;
import org.tensorflow.Result;
import org.tensorflow.SavedModelBundle;
import org.tensorflow.ndarray.NdArray;
import org.tensorflow.ndarray.NdArrays;
import org.tensorflow.ndarray.Shape;
import org.tensorflow.types.TFloat32;
import org.tensorflow.types.TInt32;
import org.tensorflow.types.TString;

/**
 * Finds people with an exported SavedModel in TensorFlow for Java.
 *
 * <p>java -cp 'libraries/*' DetectPeople.java exported/keypoint_rcnn/1 photograph.jpg [more.png ...]
 *
 * <p>Prints a line for each person that scores 0.5 or more (SCORE in the environment chooses another
 * least score): file, score, the box (x0, y0, x1, y1), and x, y, score of each keypoint in the order of
 * assets/skeleton.json; in pixels of the image as a viewer shows it.
 */
public final class DetectPeople {
  public static void main(String[] arguments) throws Exception {
    float leastScore = Float.parseFloat(System.getenv().getOrDefault("SCORE", "0.5"));
    int count = arguments.length - 1;
    NdArray<byte[]> files = NdArrays.ofObjects(byte[].class, Shape.of(count));
    for (int i = 0; i < count; i++) {
      files.setObject(Files.readAllBytes(Path.of(arguments[i + 1])), i);
    }
    try (SavedModelBundle model = SavedModelBundle.load(arguments[0], SavedModelBundle.DEFAULT_TAG);
        TString images = TString.tensorOfBytes(files);
        Result found = model.function("serving_default").call(Map.of("image_bytes", images))) {
      TInt32 number = (TInt32) found.get("num_detections").orElseThrow();
      TFloat32 scores = (TFloat32) found.get("scores").orElseThrow();
      TFloat32 boxes = (TFloat32) found.get("boxes").orElseThrow();
      TFloat32 keypoints = (TFloat32) found.get("keypoints").orElseThrow();
      TFloat32 keypointScores = (TFloat32) found.get("keypoint_scores").orElseThrow();
      for (int i = 0; i < count; i++) {
        for (int d = 0; d < number.getInt(i) && scores.getFloat(i, d) >= leastScore; d++) { // best score first
          StringBuilder line = new StringBuilder(arguments[i + 1]);
          add(line, scores.getFloat(i, d));
          for (int side = 0; side < 4; side++) {
            add(line, boxes.getFloat(i, d, side));
          }
          for (int k = 0; k < keypoints.shape().get(2); k++) {
            add(line, keypoints.getFloat(i, d, k, 0));
            add(line, keypoints.getFloat(i, d, k, 1));
            add(line, keypointScores.getFloat(i, d, k));
          }
          System.out.println(line);
        }
      }
    }
  }

  private static void add(StringBuilder line, float value) {
    line.append(String.format(Locale.ROOT, "\t%.5f", value));
  }
}
