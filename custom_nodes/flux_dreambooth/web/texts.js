// The texts of locales/*/main.json in the user's language, and numbers as that language writes them.
import { app } from '../../scripts/app.js'
import { api } from '../../scripts/api.js'
import { translator } from './messages.js'

const ROOT = 'fluxDreamBooth'
let texts = {}
let translators = {} // by language, as they are needed

export async function loadTexts() {
  const answer = await api.fetchApi('/i18n')
  texts = answer.ok ? await answer.json() : {}
  translators = {}
}

export function language() {
  return app.extensionManager?.setting?.get('Comfy.Locale') || navigator.language.split('-')[0] || 'en'
}

/** The text of a key such as 'training.left'. {name} becomes values.name, and {name:one|several} depends on whether it is 1. */
export function text(key, values = {}) {
  const found = (lookUp(language(), key) ?? lookUp('en', key) ?? key)
    .replace(/\{(\w+):([^|}]*)\|([^}]*)\}/g, (_, name, one, several) => String(values[name]) === '1' ? one : several)
  return found.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole)
}

/** What a list shows for one of its values. */
export const option = (value) => texts[language()]?.[ROOT]?.options?.[value] ?? value

/** A text that the server made, in the user's language; what is not known stays English. */
export const message = (english) => messages().translate(english)

/** The same for a text that the trainer may have made instead: only one that is certainly the node pack's is changed. */
export const messageIfOurs = (english) => messages().exact(english)

function messages() {
  const { messages: known = {}, options = {} } = texts[language()]?.[ROOT] ?? {}
  return translators[language()] ??= translator({ ...options, ...known })
}

/** The English texts of the project's workflows -> those of the user's language. */
export function workflowTexts() {
  const [english, own] = ['en', language()].map((locale) => texts[locale]?.[ROOT]?.workflows ?? {})
  return new Map(['titles', 'notes'].flatMap((kind) =>
    Object.entries(english[kind] ?? {}).map(([key, value]) => [value, own[kind]?.[key] ?? value])))
}

/** The tooltip of a node's input, as the page shows it. */
export function inputTooltip(node, input) {
  const found = [language(), 'en'].map((locale) => texts[locale]?.nodeDefs?.[node]?.inputs?.[input]?.tooltip).find(Boolean)
  return found?.replace(/\{'([{}|@])'\}/g, '$1')
}

function lookUp(locale, key) {
  const found = [ROOT, ...key.split('.')].reduce((level, part) => level?.[part], texts[locale])
  return typeof found === 'string' ? found : undefined
}

export function formatNumber(value, digits = 3) {
  if (value === null || value === undefined) return '–'
  if (Number.isInteger(value)) return value.toLocaleString(language())
  if (value !== 0 && Math.abs(value) < 1e-3) return value.toExponential(1).replace('e-', 'e−')
  return value.toLocaleString(language(), { maximumSignificantDigits: digits })
}

export const formatGB = (bytes) => bytes < 1e8 ? `${formatNumber(bytes / 1e6, 2)} MB` : `${formatNumber(bytes / 1e9, 3)} GB`

export function formatDuration(seconds) {
  if (seconds === null || seconds === undefined) return '–'
  const minutes = Math.round(seconds / 60)
  if (seconds < 60) return text('time.seconds', { n: Math.round(seconds) })
  if (minutes < 60) return text('time.minutes', { n: minutes })
  if (minutes < 48 * 60) return text('time.hours', { h: Math.floor(minutes / 60), m: minutes % 60 })
  return text('time.days', { n: Math.round(minutes / 1440) })
}
