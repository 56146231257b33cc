// A person's journeys through the console, in a real Chromium, against a lab. Arguments: URL, DIRECTORY for screenshots.
// On standard input: the user's password. The lab has a VM `desk` that is stopped, and a user `kim`, an operator.
import { AxeBuilder } from "@axe-core/playwright";
import { chromium } from "playwright-core";
import assert from "node:assert/strict";
import { mkdirSync, readFileSync } from "node:fs";

const [url, shots] = process.argv.slice(2);
const password = readFileSync(0, "utf8").trim();
mkdirSync(shots, { recursive: true });
const WAIT = { timeout: 60_000 };

const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox", "--disable-gpu"] });
const wrong = [];

async function open(locale, width, colorScheme) {
  const context = await browser.newContext({ ignoreHTTPSErrors: true, locale, colorScheme, viewport: { width, height: 900 } });
  const page = await context.newPage();
  page.on("console", (said) => {
    // What a refusal is shown for, and what breaks a policy, a browser says there, too.
    if (said.type() === "error" && !/status of 401/.test(said.text())) wrong.push(said.text());
  });
  page.on("pageerror", (error) => wrong.push(String(error)));
  page.on("request", (request) => {
    if (!request.url().startsWith(url) && !/^(data|blob):/.test(request.url())) wrong.push(`asked ${request.url()}`);
  });
  return page;
}

/** A picture, and what axe finds serious. */
async function look(page, name) {
  await page.screenshot({ path: `${shots}/${name}.png` });
  const { violations } = await new AxeBuilder({ page }).analyze();
  for (const { id, impact, nodes } of violations)
    if (["serious", "critical"].includes(impact)) wrong.push(`${name}: ${id}: ${nodes.map((node) => node.html).join(" ")}`);
  const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  if (wide > 0) wrong.push(`${name}: the page is ${wide} px too wide`);
}

async function logIn(page, words) {
  await page.goto(url);
  await page.getByLabel(words.user).fill("kim");
  await page.getByLabel(words.password).fill("not the password");
  await page.getByRole("button", { name: words.login }).click();
  await page.getByRole("alert").waitFor(WAIT);
  await page.getByLabel(words.password).fill(password);
  await page.getByRole("button", { name: words.login }).click();
  await page.getByRole("heading", { name: words.overview }).waitFor(WAIT);
  await page.getByText(words.vms).waitFor(WAIT);
}

const en = { user: "Name", password: "Password", login: "Log in", overview: "Overview", vms: "1 VM" };
const ja = { user: "名前", password: "パスワード", login: "ログイン", overview: "概要", vms: "仮想マシン 1 台" };

// A VM is started, seen, looked at, switched off.
const page = await open("en-GB", 1440, "light");
const bytes = { first: 0 };
page.on("response", async (answer) => {
  if (answer.url().includes("/assets/") || answer.url() === `${url}/`) bytes.first += Number((await answer.allHeaders())["content-length"] ?? 0);
});
await page.goto(url);
await page.getByLabel(en.user).waitFor(WAIT);
await look(page, "login-en-1440");
await logIn(page, en);
await look(page, "overview-en-1440");
assert.ok(bytes.first < 300_000, `the first load has ${bytes.first} bytes`);
await page.getByRole("link", { name: "VMs" }).click();
await page.getByRole("link", { name: "desk", exact: true }).waitFor(WAIT);
await look(page, "vms-en-1440");
await page.getByLabel("Search").fill("nothing like it");
await page.getByText("0 of").waitFor(WAIT);
await page.getByLabel("Search").fill("desk");
await page.getByRole("link", { name: "desk", exact: true }).click();
await page.getByRole("button", { name: "Start", exact: true }).click();
await page.getByRole("button", { name: "Switch off" }).waitFor(WAIT);
await look(page, "vm-running-en-1440");
await page.getByRole("link", { name: "Screen" }).click();
// Something is on the screen: not all of its pixels are the same.
await page.waitForFunction(() => {
  const canvas = document.querySelector(".screen canvas");
  if (!canvas || canvas.width < 100) return false;
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  for (let n = 4; n < data.length; n += 4) if (data[n] !== data[0] || data[n + 1] !== data[1]) return true;
  return false;
}, undefined, WAIT);
await look(page, "screen-en-1440");
await page.getByRole("button", { name: "Switch off" }).click();
await page.getByText("as if the power failed").waitFor(WAIT);
await look(page, "question-en-1440");
await page.getByRole("button", { name: "Switch off" }).last().click();
await page.getByRole("button", { name: "Start", exact: true }).waitFor(WAIT);
await page.getByRole("link", { name: "Jobs" }).click();
await page.getByText("vm-stop").first().waitFor(WAIT);
await look(page, "jobs-en-1440");
await page.getByRole("link", { name: "Hosts" }).click();
await page.getByText("online").first().waitFor(WAIT);
await look(page, "hosts-en-1440");
await page.getByRole("button", { name: "Log out" }).click();
await page.getByLabel(en.user).waitFor(WAIT);

// In Japanese, dark, on a telephone, with the keyboard.
const phone = await open("ja-JP", 360, "dark");
await logIn(phone, ja);
await look(phone, "overview-ja-360");
for (const [link, name] of [["仮想マシン", "vms"], ["ホスト", "hosts"], ["ジョブ", "jobs"]]) {
  await phone.getByRole("link", { name: link }).focus();
  await phone.keyboard.press("Enter");
  await phone.getByRole("heading", { name: link }).waitFor(WAIT);
  await look(phone, `${name}-ja-360`);
}
await phone.getByLabel("言語").selectOption("en");
await phone.getByRole("heading", { name: "Jobs" }).waitFor(WAIT);

await browser.close();
assert.deepEqual(wrong, []);
