// The sheets of images that a check or a training left: composites as they are trained, and what the base model generated.
import { h } from '../elements.js'
import { text } from '../texts.js'
import { sheetUrl } from './requests.js'

/** run: whose they are; sheets: their names. Returns an element, or null without any. */
export function sheetPictures(run, sheets) {
  if (!sheets?.length) return null
  return h('div', { class: 'fdb-pictures' }, sheets.map((sheet) => h('a', { href: sheetUrl(run, sheet), target: '_blank', rel: 'noopener' },
    h('img', { src: sheetUrl(run, sheet), alt: text(`bench.sheets.${sheet}`), loading: 'lazy' }), h('span', {}, text(`bench.sheets.${sheet}`)))))
}
