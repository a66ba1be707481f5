// The MLS engine alone: somebody else speaks to the services.
import { engine } from "./engine.mjs";
import { serve } from "./lines.mjs";

await serve(engine);
