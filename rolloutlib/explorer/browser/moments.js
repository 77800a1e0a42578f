// Where a cell of a picture is, in words; of a spectrogram, when it is.

/** The middle of a cell of the spectrogram, in seconds. */
export function seconds({ get, pictures }, cell) {
  return ((cell + 0.5) / pictures[0].grid[1]) * get("seconds");
}

export function placeOf(view, { grid }, cell) {
  if (view.get("seconds")) return `${seconds(view, cell).toFixed(2)} s`;
  return `row ${Math.floor(cell / grid[1]) + 1} of ${grid[0]}, column ${(cell % grid[1]) + 1} of ${grid[1]}`;
}
