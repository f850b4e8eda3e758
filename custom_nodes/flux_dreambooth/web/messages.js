// Texts that the node pack's Python code makes, in another language: matched with the English ones of a catalogue.
//
// A key of the catalogue is a text of the code with {} for each value, its text has {0}, {1} … for them. Values are texts
// themselves: "x.safetensors cannot be used: it holds no tensors" has one.

const SEPARATORS = ['; ', ', ']

const CERTAIN = 15 // letters apart from the values; a text with fewer may be another program's

/**
 * catalogue: English -> another language. Returns {translate(text), exact(text)}, which leave what is not in the catalogue
 * as it is; exact also leaves what is put together of several texts, or has few words of its own.
 */
export function translator(catalogue) {
  const templates = Object.entries(catalogue).map(([english, own]) => ({ ...matchers(english), own }))
    .sort((a, b) => b.letters - a.letters) // the most specific one first

  const certain = templates.filter(({ values, letters }) => values === 0 || letters >= CERTAIN)

  const translate = (text) => translated(String(text)) ?? String(text)

  /** The text in the other language, or null if no part of it is known. */
  function translated(text) {
    const [, before, body, after] = text.match(/^([\s;,]*)([^]*?)(\s*)$/)
    const found = body && (lines(body) ?? columns(body) ?? whole(body, 'strict') ?? list(body, true) ?? whole(body, 'loose') ?? list(body, false))
    return found ? before + found + after : null
  }

  /** kind: "strict" if no value may have a separator in it, or "loose". */
  function whole(text, kind, from = templates) {
    for (const template of from) {
      const match = text.match(template[kind])
      if (match) return template.own.replace(/\{(\d+)\}/g, (_, index) => translate(match[+index + 1]))
    }
    return null
  }

  function lines(text) {
    if (!text.includes('\n')) return null
    const found = text.split('\n').map(translated)
    return found.some(Boolean) ? text.split('\n').map((line, index) => found[index] ?? line).join('\n') : whole(text, 'loose')
  }

  /** complete: only if each part is known. */
  function list(text, complete) {
    for (const separator of SEPARATORS.filter((each) => text.includes(each))) {
      const parts = text.split(separator)
      const found = parts.map(translated)
      if (complete ? found.every((each) => each !== null) : found.some((each) => each !== null)) {
        return parts.map((part, index) => found[index] ?? part).join(separator)
      }
    }
    return null
  }

  /** A line of cells with two spaces or more between them, which keep their places. */
  function columns(text) {
    const cells = text.split(/( {2,})/)
    if (cells.length < 3) return null
    const found = cells.map((cell, index) => index % 2 ? cell : translated(cell))
    if (found.every((cell, index) => index % 2 || cell === null)) return null
    return cells.map((cell, index) => {
      if (index % 2 === 0) return found[index] ?? cell
      const room = width(cells[index - 1]) + cell.length - width(found[index - 1] ?? cells[index - 1])
      return ' '.repeat(Math.max(2, room))
    }).join('')
  }
  const exact = (text) => whole(String(text), 'strict', certain) ?? String(text)

  return { translate, exact }
}

/** The columns that a text takes: two for a character of East Asian scripts. */
const width = (text) => [...text].reduce((sum, each) => sum + (each >= '\u1100' ? 2 : 1), 0)

function matchers(english) {
  const parts = english.split('{}')
  const escaped = parts.map((part) => part.replace(/[.*+?^${}()|[\]\\]/g, '\\$&'))
  const pattern = (value) => new RegExp(`^${escaped.join(`(${value})`)}$`)
  return {
    letters: parts.join('').length,
    values: parts.length - 1,
    strict: pattern('(?:(?!; |, |\\n)[^])+?'),
    loose: pattern('[^]*?')
  }
}
