#!/usr/bin/env bash
# OpenAPI Generator 7.26.0, `java` with the library `native`: a body of bytes is sent as the path of the file, in JSON.
#
# An operation whose body is `application/octet-stream` with `format: binary` gets a method with a java.io.File. The
# generated code gives it to Jackson, which writes a File as a string: the server receives `"/tmp/…/picture"`, with the
# quotation marks, as application/octet-stream. The library okhttp-gson sends the file's bytes. A request interceptor of
# ApiClient can put the file in its place: it runs last.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip --quiet --disable-pip-version-check install openapi-generator-cli==7.26.0
jar=$(echo venv/lib/python3*/site-packages/openapi_generator_cli/openapi-generator.jar)
cat > openapi.json <<'JSON'
{"openapi": "3.0.3", "info": {"title": "x", "version": "1"}, "paths": {"/send": {"post": {
  "operationId": "send", "responses": {"204": {"description": "done"}},
  "requestBody": {"required": true, "content": {"application/octet-stream": {
    "schema": {"type": "string", "format": "binary"}}}}}}}}
JSON
java -jar "$jar" generate -g java -i openapi.json -o client --library native \
  --additional-properties openApiNullable=false,annotationLibrary=none,documentationProvider=none > generator.log
mkdir -p client/src/main/java/javax/annotation
echo 'package javax.annotation; public @interface Generated { String value(); String comments() default ""; String date() default ""; }' \
  > client/src/main/java/javax/annotation/Generated.java
cat > Send.java <<'JAVA'
import com.sun.net.httpserver.HttpServer;
import java.io.File;
import java.net.InetSocketAddress;
import java.nio.file.Files;
import java.nio.file.Path;
import org.openapitools.client.ApiClient;
import org.openapitools.client.api.DefaultApi;

class Send {
  public static void main(String[] arguments) throws Exception {
    var received = new String[1];
    var server = HttpServer.create(new InetSocketAddress("127.0.0.1", 0), 0);
    server.createContext("/send", exchange -> {
      received[0] = new String(exchange.getRequestBody().readAllBytes());
      exchange.sendResponseHeaders(204, -1);
    });
    server.start();
    Files.writeString(Path.of("picture"), "bytes of a picture");
    var client = new ApiClient();
    client.updateBaseUri("http://127.0.0.1:" + server.getAddress().getPort());
    new DefaultApi(client).send(new File("picture").getAbsoluteFile());
    server.stop(0);
    System.out.println("received: " + received[0]);
    if (!received[0].startsWith("\"/")) throw new AssertionError("the file's bytes are sent now");
  }
}
JAVA
mkdir classes
javac -nowarn -cp "$jar" -d classes $(find client/src/main/java -name '*.java') Send.java 2> /dev/null
java -cp "classes:$jar" Send
