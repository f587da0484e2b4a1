// A transmitter of shared security signals, made with jose. It serves its JWK Set and a
// poll endpoint (RFC 8936), prints its address, reads the broker's address from standard
// input, pushes events (RFC 8935), and prints what became of them.
import * as http from 'node:http'
import * as readline from 'node:readline'
import * as jose from 'jose'

const [audience, pushToken, pollToken, provider] = process.argv.slice(2)
const algorithms = ['RS256', 'PS256', 'ES256', 'ES384', 'EdDSA']
const keys = {}
for (const alg of algorithms) {
  const pair = await jose.generateKeyPair(alg, { extractable: true })
  keys[alg] = { ...pair, jwk: { ...(await jose.exportJWK(pair.publicKey)), kid: alg, alg, use: 'sig' } }
}

let issuer
const queue = new Map(), acked = [], errors = {}
const json = (res, status, body) => {
  res.writeHead(status, { 'content-type': 'application/json' })
  res.end(JSON.stringify(body))
}
const server = http.createServer((req, res) => {
  if (req.url === '/jwks.json') return json(res, 200, { keys: algorithms.map(alg => keys[alg].jwk) })
  if (req.url !== '/poll' || req.headers.authorization !== `Bearer ${pollToken}`) return json(res, 401, {})
  let text = ''
  req.on('data', part => { text += part })
  req.on('end', () => {
    const body = JSON.parse(text)
    for (const id of body.ack ?? []) { acked.push(id); queue.delete(id) }
    for (const [id, e] of Object.entries(body.setErrs ?? {})) { errors[id] = e.err; queue.delete(id) }
    const sets = Object.fromEntries([...queue].slice(0, body.maxEvents))
    json(res, 200, { sets, moreAvailable: queue.size > Object.keys(sets).length })
  })
})

const risc = 'https://schemas.openid.net/secevent/risc/event-type/'
const caep = 'https://schemas.openid.net/secevent/caep/event-type/'
let number = 0
const sign = (type, sub, { alg = 'RS256', typ = 'secevent+jwt', aud = audience, key = keys[alg].privateKey, iat, id = `event-${++number}`, payload = {} } = {}) =>
  new jose.SignJWT({ sub_id: { format: 'iss_sub', iss: provider, sub }, txn: `txn-${number}`, events: { [type]: payload } })
    .setProtectedHeader({ alg, typ, kid: alg }).setIssuer(issuer).setAudience(aud).setJti(id).setIssuedAt(iat).sign(key)

server.listen(0, '127.0.0.1', () => {
  issuer = `http://127.0.0.1:${server.address().port}`
  console.log(issuer)
})
const lines = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]()
const broker = (await lines.next()).value

const push = async token => {
  const res = await fetch(`${broker}/signals/okta`, {
    method: 'POST', body: token, headers: { 'content-type': 'application/secevent+jwt', accept: 'application/json', authorization: `Bearer ${pushToken}` }
  })
  const text = await res.text()
  return { status: res.status, err: text ? JSON.parse(text).err : '' }
}
const now = Math.floor(Date.now() / 1000)
const pushed = {}
for (const alg of algorithms) pushed[alg] = await push(await sign(caep + 'session-revoked', 'ana', { alg }))
pushed.audience = await push(await sign(risc + 'account-disabled', 'ana', { aud: 'https://other.test' }))
pushed.typ = await push(await sign(risc + 'account-disabled', 'ana', { typ: 'JWT' }))
pushed.old = await push(await sign(risc + 'account-disabled', 'ana', { iat: now - 2 * 24 * 3600 }))
pushed.future = await push(await sign(risc + 'account-disabled', 'ana', { iat: now + 3600 }))
const stranger = await jose.generateKeyPair('RS256')
pushed.key = await push(await sign(risc + 'account-disabled', 'ana', { key: stranger.privateKey }))
pushed.hmac = await push(await new jose.SignJWT({ events: { [risc + 'account-disabled']: {} } }).setProtectedHeader({ alg: 'HS256', typ: 'secevent+jwt', kid: 'RS256' })
  .setIssuer(issuer).setAudience(audience).setJti('hmac').setIssuedAt().sign(new TextEncoder().encode(JSON.stringify(keys.RS256.jwk))))
pushed.unknown = await push(await sign(risc + 'account-disabled', 'nobody'))
console.log('harmless')
await lines.next()

const disabled = await sign(risc + 'account-disabled', 'ana', { payload: { reason: 'hijacking' }, alg: 'ES256' })
pushed.disabled = await push(disabled)
pushed.replayed = await push(disabled)

queue.set('polled', await sign(risc + 'account-purged', 'ben', { id: 'polled', aud: `${audience}/polled` }))
queue.set('foreign', await sign(risc + 'account-purged', 'ana', { id: 'foreign', aud: 'https://other.test' }))
while (!acked.includes('polled') || !errors.foreign) await new Promise(resolve => setTimeout(resolve, 50))
console.log(JSON.stringify({ pushed, acked, errors }))
server.close()
process.exit(0)
