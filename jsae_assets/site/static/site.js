// Data comes in scripts that hand it over, jsae.receive(name, data): a page from the file system may not fetch.
"use strict";
const jsae = (() => {
  const asked = new Map();
  const load = (name) => {
    if (!asked.has(name)) {
      const waiting = {};
      waiting.promise = new Promise((give, fail) => Object.assign(waiting, { give, fail }));
      asked.set(name, waiting);
      const script = document.createElement("script");
      script.src = `${ROOT}data/${name.split("/").map(encodeURIComponent).join("/")}.js`;
      script.onerror = () => waiting.fail(new Error(`${script.src} is missing`));
      document.head.append(script);
    }
    return asked.get(name).promise;
  };
  const receive = (name, data) => asked.get(name)?.give(data);
  return { load, receive };
})();
