// Files that were dropped or chosen: images go to the server, which checks them; text files of the same names are captions,
// and images called NAME.mask.png, or as other trainers write it, are masks.
import { text } from '../texts.js'
import { uploadImage, uploadMask, writeCaption } from './requests.js'

const AT_ONCE = 3
const BUSY = 503 // others are uploading too
const TAKEN = 409 // there is a caption
const TRIES = 30
const PAUSE = 1000 // milliseconds before a busy server is asked again

const stemOf = (name) => name.replace(/\.[^.]*$/, '')
const isCaption = (file) => /\.(txt|caption)$/i.test(file.name)
/** The stem of the image whose mask a file would be. */
const maskedStem = (file) => stemOf(file.name).match(/^(.+)[-_.](?:mask|masklabel|condlabel)$/i)?.[1]
const wait = () => new Promise((resolve) => setTimeout(resolve, PAUSE))

/** The files of a drop, and a problem for each folder, which is not opened. */
export function filesOf(transfer) {
  const entries = [...transfer.items ?? []].map((item) => item.webkitGetAsEntry?.()).filter(Boolean)
  const folders = entries.filter(({ isDirectory }) => isDirectory).map(({ name }) => name)
  const files = [...transfer.files].filter(({ name }) => !folders.includes(name))
  return { files, problems: folders.map((where) => ({ where, what: text('bench.images.folder') })) }
}

/**
 * Send files to a concept. limits: of the server; progress(done, total); known: the images that are there.
 * Returns {added, existing, captions, masks} as numbers, and problems: [{where, what}] of the files that are not there now.
 */
export async function upload(concept, files, limits, progress, known = []) {
  const found = { added: 0, existing: 0, captions: 0, masks: 0, problems: [] }
  const stored = new Map(known.map((name) => [stemOf(name), name])) // what a file is called there, by the stem that it had
  const stems = new Set([...stored.keys(), ...files.filter((file) => !isCaption(file)).map(({ name }) => stemOf(name))])
  const isMask = (file) => !isCaption(file) && stems.has(maskedStem(file))
  const images = files.filter((file) => !isCaption(file) && !isMask(file))
  let done = 0
  const count = () => progress(++done, files.length)
  const sendAll = (some, send) => {
    const left = [...some]
    const worker = async () => {
      for (let file = left.shift(); file; file = left.shift()) {
        await attempt(found, file, async () => {
          if (file.size > limits.image_bytes) throw new Error(text('bench.images.tooLarge', { n: Math.floor(limits.image_bytes / 2 ** 20) }))
          await send(file)
        })
        count()
      }
    }
    return Promise.all(Array.from({ length: AT_ONCE }, worker))
  }
  progress(0, files.length)
  await sendAll(images, async (file) => {
    const answer = await patiently(() => uploadImage(concept, file))
    stored.set(stemOf(file.name), answer.file)
    found[answer.existing ? 'existing' : 'added']++
  })
  await sendAll(files.filter(isMask), async (file) => {
    const image = stored.get(maskedStem(file))
    if (!image) throw new Error(text('bench.images.lonelyMask'))
    found[(await patiently(() => uploadMask(concept, image, file))).existing ? 'existing' : 'masks']++
  })
  for (const file of files.filter(isCaption)) {
    await attempt(found, file, async () => {
      const image = stored.get(stemOf(file.name))
      if (!image) throw new Error(text('bench.images.lonelyCaption'))
      await writeCaption(concept, image, await file.text(), null).catch((error) => {
        throw error.status === TAKEN ? new Error(text('bench.images.hasCaption', { image })) : error
      })
      found.captions++
    })
    count()
  }
  return found
}

async function attempt(found, file, act) {
  try {
    await act()
  } catch (error) {
    const what = error.status === undefined && error instanceof TypeError ? text('bench.images.notSent') : error.message
    found.problems.push({ where: file.name, what })
  }
}

async function patiently(act) {
  for (let tries = 1; ; tries++) {
    try {
      return await act()
    } catch (error) {
      if (error.status !== BUSY || tries === TRIES) throw error
      await wait()
    }
  }
}

/** An element takes files that are dropped on it; ComfyUI's page, which opens images as workflows, does not see them. */
export function takeDrops(element, take) {
  let inside = 0
  const mark = (by) => {
    inside = Math.max(0, inside + by)
    element.classList.toggle('fdb-over', inside > 0)
  }
  const ours = (act) => (event) => {
    if (![...event.dataTransfer?.types ?? []].includes('Files')) return
    event.preventDefault()
    event.stopPropagation()
    act(event)
  }
  element.addEventListener('dragenter', ours(() => mark(1)))
  element.addEventListener('dragleave', ours(() => mark(-1)))
  element.addEventListener('dragover', ours((event) => { event.dataTransfer.dropEffect = 'copy' }))
  element.addEventListener('drop', ours((event) => {
    inside = 0
    mark(0)
    take(filesOf(event.dataTransfer))
  }))
}
