// Browsers start no worker from a page that was opened from a disk. The search's worker then runs in a hidden frame: it talks
// by `postMessage` and `message` events, as a worker does, and finds out by `IFrameWorker` that it is in a frame.
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.appendChild(frame);
      this.inside = frame.contentWindow;
      const ready = new Promise((resolve) => (this.inside.started = resolve));
      this.inside.answer = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      this.inside.document.open();
      this.inside.document.write(
        "<body><script>postMessage = answer; importScripts = (...urls) => Promise.all(urls.map((url) => new Promise((done) => {" +
          "const script = document.createElement('script'); script.src = url; script.onload = done;" +
          "document.body.appendChild(script); })));</script>" +
          `<script src="${new URL(url, document.baseURI)}" onload="started()"></script></body>`,
      );
      this.inside.document.close();
      this.ready = ready;
    }

    set onmessage(listener) {
      this.addEventListener("message", listener);
    }

    postMessage(data) {
      this.ready.then(() => this.inside.dispatchEvent(new MessageEvent("message", { data })));
    }

    terminate() {}
  };
  window.Worker = window.IFrameWorker;
}
