import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.File;
import java.net.http.HttpRequest.BodyPublishers;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.Map;
import org.openapitools.client.ApiClient;
import org.openapitools.client.ApiException;
import org.openapitools.client.api.ModelsApi;
import org.openapitools.client.api.PredictionsApi;
import org.openapitools.client.model.DetectionItem;
import org.openapitools.client.model.LabelItem;
import org.openapitools.client.model.ModelCard;
import org.openapitools.client.model.Problem;
import org.openapitools.client.model.SegmentItem;

/** Prints what a client of OpenAPI Generator's Java library `native` makes of the service's answers: URL PICTURE OTHER. */
class Generated {
  public static void main(String[] arguments) throws Exception {
    var json = new ObjectMapper();
    Map<String, Object> printed = new LinkedHashMap<>();
    var picture = predictions(arguments[0], arguments[1]);
    var file = new File(arguments[1]);
    var classified = picture.classify(file, null, null, null, null, null).getResults().get(0);
    printed.put("labels", classified.getLabels().stream().map(LabelItem::getLabel).toList());
    var detected = picture
        .detect(file, null, null, null, null, null, null, null, null, null, null, null, null, null, null)
        .getResults().get(0);
    printed.put("detections", detected.getDetections().stream().map(DetectionItem::getLabel).toList());
    var segmented = picture
        .segment(file, null, null, null, null, null, null, null, null, null, null, null, null, null)
        .getResults().get(0);
    printed.put("segments", segmented.getSegments().stream().map(SegmentItem::getLabel).toList());
    try {
      predictions(arguments[0], arguments[2]).classify(new File(arguments[2]), null, null, null, null, null);
    } catch (ApiException error) {
      printed.put("error", json.readValue(error.getResponseBody(), Problem.class).getDetail());
    }
    var models = new ModelsApi(client(arguments[0])).listModels().getModels();
    printed.put("models", models.stream().map(ModelCard::getName).toList());
    System.out.println(json.writeValueAsString(printed));
  }

  private static ApiClient client(String url) {
    var client = new ApiClient();
    client.updateBaseUri(url);
    return client;
  }

  /** The library sends the path of a file as JSON; this sends the file. */
  private static PredictionsApi predictions(String url, String path) {
    var client = client(url);
    client.setRequestInterceptor(request -> {
      try {
        request.POST(BodyPublishers.ofFile(Path.of(path)));
      } catch (java.io.FileNotFoundException error) {
        throw new java.io.UncheckedIOException(error);
      }
    });
    return new PredictionsApi(client);
  }
}
