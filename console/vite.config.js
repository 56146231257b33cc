import { svelte } from "@sveltejs/vite-plugin-svelte";
import { writeFileSync } from "node:fs";
import { defineConfig } from "vite";

/** Writes which packages are in the pages, a name a line: their licences go with them. */
function packages() {
  return {
    name: "packages",
    generateBundle(_, files) {
      const names = new Set();
      for (const file of Object.values(files)) {
        if (file.type !== "chunk") continue;
        for (const id of Object.keys(file.modules)) {
          const found = /.*node_modules[/]((?:@[^/]+[/])?[^/]+)/.exec(id);
          if (found) names.add(found[1]);
        }
      }
      writeFileSync("node_modules/.packages", [...names].sort().map((name) => `${name}\n`).join(""));
    },
  };
}

export default defineConfig({ plugins: [svelte(), packages()], build: { target: "es2022", assetsInlineLimit: 0 } });
