// Probot as its documentation runs it in production, with a handler that does nothing.
import { run } from "probot";

await run((app) => {
  app.on("issue_comment.created", async () => {});
});
