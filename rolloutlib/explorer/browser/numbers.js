// Arrays of numbers, of whatever they are.

/** Bytes as a kernel sends them, or decoded from the base64 in which a page stores them. */
export function bytesOf(value) {
  if (typeof value === "string") return Uint8Array.from(atob(value), (letter) => letter.charCodeAt(0));
  const view = ArrayBuffer.isView(value) ? value : new DataView(value);
  return new Uint8Array(view.buffer, view.byteOffset, view.byteLength).slice();
}

/** For each pixel, its first cell and the weights of the cells from there on; sigma in cells. */
export function gaussian(cells, scale, sigma) {
  const samples = 8;
  return Array.from({ length: cells * scale }, (_, pixel) => {
    const centre = (pixel + 0.5) / scale;
    if (!sigma) return { first: Math.floor(centre), shares: [1] };
    const first = Math.max(0, Math.floor(centre - 4 * sigma));
    const last = Math.min(cells - 1, Math.floor(centre + 4 * sigma));
    const shares = [];
    for (let cell = first; cell <= last; cell++) {
      let share = 0;
      for (let s = 0; s < samples; s++) share += Math.exp(-(((cell + (s + 0.5) / samples - centre) / sigma) ** 2) / 2);
      shares.push(share);
    }
    const total = shares.reduce((sum, share) => sum + share, 0);
    return { first, shares: shares.map((share) => share / total) };
  });
}

/** A grid resampled to the pixels of `down` and `across`, one axis after the other. */
export function resample(grid, columns, down, across) {
  const rows = grid.length / columns;
  const wide = new Float32Array(rows * across.length);
  for (let y = 0; y < rows; y++) {
    for (let x = 0; x < across.length; x++) {
      const { first, shares } = across[x];
      let sum = 0;
      for (let i = 0; i < shares.length; i++) sum += shares[i] * grid[y * columns + first + i];
      wide[y * across.length + x] = sum;
    }
  }
  const fine = new Float32Array(down.length * across.length);
  for (let y = 0; y < down.length; y++) {
    const { first, shares } = down[y];
    for (let i = 0; i < shares.length; i++) {
      const from = (first + i) * across.length;
      for (let x = 0; x < across.length; x++) fine[y * across.length + x] += shares[i] * wide[from + x];
    }
  }
  return fine;
}

export function extent(values) {
  let low = Infinity, high = -Infinity;
  for (let i = 0; i < values.length; i++) {
    if (values[i] < low) low = values[i];
    if (values[i] > high) high = values[i];
  }
  return [low, high];
}

/** Positions of the highest values above zero, highest first. */
export function topOf(values, count) {
  const best = [];
  for (let i = 0; i < values.length; i++) {
    if (!(values[i] > (best.length < count ? 0 : values[best[count - 1]]))) continue;
    let place = Math.min(best.length, count - 1);
    for (; place > 0 && values[best[place - 1]] < values[i]; place--) best[place] = best[place - 1];
    best[place] = i;
  }
  return best;
}
