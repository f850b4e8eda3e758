// What "quick" and "good" change in a preset; "best" is the preset as it is.
const PARTS = { quick: 0.2, good: 0.5, best: 1 } // of the preset's length
const RANK = 32 // at most, unless it is to be the best
const LENGTHS = ['max_train_epochs', 'max_train_steps', 'save_every_n_epochs', 'save_every_n_steps', 'sample_every_n_epochs', 'sample_every_n_steps']
const USUAL = { max_train_steps: 1600, network_dim: 16 } // the trainer's own, where a preset names none

export const QUALITIES = Object.keys(PARTS)

/** A preset's settings with the trainer's own length and rank where it names none; its epochs win over its steps. */
export function completed(preset) {
  const { max_train_steps: steps, ...rest } = { ...USUAL, ...preset }
  return rest.max_train_epochs ? rest : { ...rest, max_train_steps: steps }
}

/** The settings, by the names of their flags, that a quality puts in place of the preset's. */
export function settingsOf(quality, preset) {
  const part = PARTS[quality]
  if (part === 1) return {}
  const given = completed(preset)
  const settings = Object.fromEntries(LENGTHS.filter((name) => given[name] > 0).map((name) => [name, Math.ceil(given[name] * part)]))
  return given.network_dim > RANK ? { ...settings, ...ranked(RANK, preset) } : settings
}

/** Another rank than the preset's, and the alpha with which the LoRA stays as strong. */
export function ranked(rank, preset) {
  const { network_dim: former, network_alpha: alpha = former } = completed(preset)
  return { network_dim: rank, network_alpha: rank * alpha / former }
}

/** Lines "name = value" as settings. Values are numbers, true, false, lists of them, or text. Throws an Error with the line. */
export function readSettings(lines) {
  const settings = {}
  for (const line of lines.split('\n').map((each) => each.trim()).filter((each) => each && !each.startsWith('#'))) {
    const found = line.match(/^(?:--)?([A-Za-z0-9_-]+)\s*=\s*(.+)$/)
    if (!found) throw new Error(line)
    settings[found[1]] = valueOf(found[2])
  }
  return settings
}

export const writeSettings = (settings) => Object.entries(settings).map(([name, value]) => `${name} = ${JSON.stringify(value)}`).join('\n')

function valueOf(written) {
  for (const each of [written, written.replace(/\s+#.*$/, '')]) { // without a comment behind it
    try {
      return JSON.parse(each)
    } catch {
      // text without quotes
    }
  }
  return written.replace(/^'(.*)'$/, '$1') // also TOML's other quotes
}
