"use strict";
/* The explorer's scripts, Plotly before all, travel packed: the page is a third smaller so. */
(async () => {
  for (const packed of document.querySelectorAll("script[data-packed]")) {
    const bytes = Uint8Array.from(atob(packed.textContent), (letter) => letter.charCodeAt(0));
    const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const script = document.createElement("script");
    script.textContent = await new Response(plain).text();
    document.head.append(script);
  }
})();
