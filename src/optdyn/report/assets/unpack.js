"use strict";
/*
 * Plotly travels packed (deflate, RFC 1951, in base64): the page is a third smaller so. Unpacked
 * here and not by DecompressionStream, which would have every later script, and print, wait for it.
 */
(() => {
  const LONGEST = 15;
  const ORDER = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
  const END = 256;

  /* Starts of ranges, each as long as its number of extra bits makes it, from `first` on. */
  function ranges(extra, first) {
    let next = first;
    return extra.map((bits) => { const start = next; next += 1 << bits; return start; });
  }

  const lengthBits = Array.from({ length: 29 }, (_, i) => (i < 8 || i === 28 ? 0 : (i >> 2) - 1));
  const distanceBits = Array.from({ length: 30 }, (_, i) => (i < 2 ? 0 : (i >> 1) - 1));
  const lengthStarts = ranges(lengthBits, 3);
  lengthStarts[28] = 258; // the longest has a code of its own
  const distanceStarts = ranges(distanceBits, 1);

  /* What to do on seeing 15 bits, first bit lowest: symbol << 4 | bits used. `sizes`: of each symbol's code. */
  function codeTable(sizes) {
    const table = new Uint16Array(1 << LONGEST);
    let code = 0;
    for (let size = 1; size <= LONGEST; size++, code <<= 1) {
      for (let symbol = 0; symbol < sizes.length; symbol++) {
        if (sizes[symbol] !== size) continue;
        let reversed = 0;
        for (let bit = 0; bit < size; bit++) reversed |= ((code >> bit) & 1) << (size - 1 - bit);
        for (let i = reversed; i < table.length; i += 1 << size) table[i] = (symbol << 4) | size;
        code++;
      }
    }
    return table;
  }

  const fixedSizes = Array.from({ length: 288 }, (_, i) => (i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : 8));
  const fixed = [codeTable(fixedSizes), codeTable(Array(30).fill(5))];

  /* The `size` bytes that the deflated `bytes` hold. */
  function inflate(bytes, size) {
    const out = new Uint8Array(size);
    let [at, end] = [0, 0]; // the next bit to read, the next byte to write

    const peek = (count) => {
      const i = at >> 3;
      return ((bytes[i] | (bytes[i + 1] << 8) | (bytes[i + 2] << 16)) >>> (at & 7)) & ((1 << count) - 1);
    };
    const take = (count) => { const value = peek(count); at += count; return value; };
    const symbol = (table) => { const entry = table[peek(LONGEST)]; at += entry & 15; return entry >> 4; };

    function stored() {
      const i = (at + 7) >> 3;
      const count = bytes[i] | (bytes[i + 1] << 8);
      out.set(bytes.subarray(i + 4, i + 4 + count), end);
      end += count;
      at = (i + 4 + count) << 3;
    }

    function dynamic() {
      const [literals, distances, used] = [take(5) + 257, take(5) + 1, take(4) + 4];
      const sizes = Array(19).fill(0);
      for (const place of ORDER.slice(0, used)) sizes[place] = take(3);
      const table = codeTable(sizes);
      const all = [];
      while (all.length < literals + distances) {
        const told = symbol(table);
        if (told < 16) all.push(told);
        else if (told === 16) all.push(...Array(3 + take(2)).fill(all.at(-1)));
        else all.push(...Array(told === 17 ? 3 + take(3) : 11 + take(7)).fill(0));
      }
      return [codeTable(all.slice(0, literals)), codeTable(all.slice(literals))];
    }

    function block([literals, distances]) {
      for (let told = symbol(literals); told !== END; told = symbol(literals)) {
        if (told < END) { out[end++] = told; continue; }
        const i = told - END - 1;
        const length = lengthStarts[i] + take(lengthBits[i]);
        const j = symbol(distances);
        const back = distanceStarts[j] + take(distanceBits[j]);
        for (let k = 0; k < length; k++, end++) out[end] = out[end - back];
      }
    }

    for (let last = 0; !last;) {
      last = take(1);
      const kind = take(2);
      if (kind === 0) stored();
      else block(kind === 1 ? fixed : dynamic());
    }
    return out;
  }

  window.optdyn = { inflate };
  for (const packed of document.querySelectorAll("script[data-size]")) {
    const bytes = Uint8Array.from(atob(packed.textContent), (letter) => letter.charCodeAt(0));
    const script = document.createElement("script");
    script.textContent = new TextDecoder().decode(inflate(bytes, Number(packed.dataset.size)));
    document.head.append(script);
  }
})();
