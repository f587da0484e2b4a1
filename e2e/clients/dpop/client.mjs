// openid-client, oauth4webapi, dpop and jose as clients that prove the possession of a key
// (RFC 9449). The program prints one JSON object with what each call taught its caller.
// Arguments: the broker's URL and the SPIFFE ID of the caller. The JWT-SVID is in the
// environment.
import * as client from 'openid-client'
import * as oauth from 'oauth4webapi'
import * as DPoP from 'dpop'
import * as jose from 'jose'

const [, , url, id] = process.argv
const svid = process.env.SVID
const out = {}

async function attempt(name, run) {
  try {
    out[name] = await run()
  } catch (e) {
    out[name] = { thrown: String(e.name), error: e.error ?? String(e.message) }
  }
}

const ask = { audience: 'tickets-api', scope: 'tickets:read', justification: 'a proof of possession' }
const assertion = (as, cl, body) => {
  body.set('client_assertion_type', 'urn:ietf:params:oauth:client-assertion-type:jwt-spiffe')
  body.set('client_assertion', svid)
}
const keys = jose.createRemoteJWKSet(new URL(url + '/oauth2/jwks'))

// check returns what a resource server learns from a token.
async function check(token, publicKey) {
  const { payload } = await jose.jwtVerify(token, keys, { typ: 'at+jwt', issuer: url, audience: 'https://tickets.acme.test' })
  return payload.cnf.jkt === (await jose.calculateJwkThumbprint(await jose.exportJWK(publicKey)))
}

// openid-client repeats a call that lacks a nonce by itself.
for (const alg of ['ES256', 'Ed25519', 'PS256', 'RS256']) {
  await attempt('openid-client ' + alg, async () => {
    const config = await client.discovery(new URL(url), id, undefined, assertion)
    const pair = await client.randomDPoPKeyPair(alg)
    const got = await client.clientCredentialsGrant(config, ask, { DPoP: client.getDPoPHandle(config, pair) })
    return { type: got.token_type, bound: await check(got.access_token, pair.publicKey) }
  })
}

await attempt('oauth4webapi', async () => {
  const issuer = new URL(url)
  const as = await oauth.processDiscoveryResponse(issuer, await oauth.discoveryRequest(issuer, { algorithm: 'oauth2' }))
  const cl = { client_id: id }
  const pair = await oauth.generateKeyPair('ES256')
  const handle = oauth.DPoP(cl, pair)
  const request = () => oauth.clientCredentialsGrantRequest(as, cl, assertion, ask, { DPoP: handle })
  let repeated = false
  let got
  try {
    got = await oauth.processClientCredentialsResponse(as, cl, await request())
  } catch (e) {
    if (!oauth.isDPoPNonceError(e)) throw e
    repeated = true
    got = await oauth.processClientCredentialsResponse(as, cl, await request())
  }
  const second = await oauth.processClientCredentialsResponse(as, cl, await request()) // with the nonce of the answer
  return { algorithms: as.dpop_signing_alg_values_supported, repeated, type: got.token_type, again: second.token_type, bound: await check(got.access_token, pair.publicKey) }
})

// send makes one call with a proof, and returns its status, its body and its nonce.
async function send(path, proof, body, type = 'application/json') {
  const headers = { authorization: 'Bearer ' + svid, 'content-type': type }
  if (proof) headers.dpop = proof
  const response = await fetch(url + path, { method: 'POST', headers, body })
  return { status: response.status, nonce: response.headers.get('dpop-nonce'), challenge: response.headers.get('www-authenticate') ?? '', body: await response.json() }
}

await attempt('dpop', async () => {
  const pair = await DPoP.generateKeyPair('ES256')
  const other = await DPoP.generateKeyPair('ES256')
  const body = JSON.stringify({ entitlement: 'tickets-api', scopes: ['tickets:read'], justification: 'a proof of possession' })
  const proof = (key, path, nonce, token) => DPoP.generateProof(key, url + path, 'POST', nonce, token)
  const first = await send('/v1/credentials', await proof(pair, '/v1/credentials'), body)
  const sent = await proof(pair, '/v1/credentials', first.nonce)
  const got = await send('/v1/credentials', sent, body)
  const replayed = await send('/v1/credentials', sent, body)
  const stolen = await send('/v1/credentials', sent.replace(/.$/, ''), body)
  const renew = '/v1/leases/' + got.body.lease + '/renew'
  const stripped = await send(renew, undefined, '{}')
  const wrong = await send(renew, await proof(other, renew, got.nonce), '{}')
  const moved = await send(renew, await proof(pair, '/v1/credentials', got.nonce), '{}')
  const renewed = await send(renew, await proof(pair, renew, got.nonce), '{}')
  const token = renewed.body.secret.token
  const form = new URLSearchParams({ token }).toString()
  const introspect = async (key, names) =>
    (await send('/oauth2/introspect', await proof(key, '/oauth2/introspect', got.nonce, names), form, 'application/x-www-form-urlencoded')).body
  const live = await introspect(pair, token)
  return {
    first: first.status + ' ' + first.body.code, challenge: first.challenge.startsWith('DPoP algs="'), got: got.status,
    replayed: replayed.status + ' ' + replayed.body.code, stolen: stolen.body.code, stripped: stripped.body.code, wrong: wrong.body.code,
    moved: moved.body.code, renewed: renewed.status, bound: await check(token, pair.publicKey), type: live.token_type,
    jkt: live.cnf.jkt === renewed.body.cnf.jkt, otherKey: (await introspect(other)).error, otherToken: (await introspect(pair, 'x')).error,
  }
})

// jose makes proofs by hand, good and forged ones.
await attempt('jose', async () => {
  const { publicKey, privateKey } = await jose.generateKeyPair('ES256', { extractable: true })
  const jwk = await jose.exportJWK(publicKey)
  const nonce = (await send('/v1/credentials', await new jose.SignJWT({ htm: 'POST', htu: url + '/v1/credentials' })
    .setProtectedHeader({ typ: 'dpop+jwt', alg: 'ES256', jwk }).setJti('first').setIssuedAt().sign(privateKey), '{}')).nonce
  const make = (header, claims, key = privateKey) =>
    new jose.SignJWT({ htm: 'POST', htu: url + '/v1/credentials', nonce, ...claims })
      .setProtectedHeader({ typ: 'dpop+jwt', alg: 'ES256', jwk, ...header }).setJti(crypto.randomUUID()).setIssuedAt(claims.at ?? undefined).sign(key)
  const body = JSON.stringify({ entitlement: 'tickets-api', scopes: ['tickets:read'], justification: 'a proof of possession' })
  const outcome = async (proof) => {
    const answer = await send('/v1/credentials', proof, body)
    return answer.body.code ?? answer.status
  }
  const now = Math.floor(Date.now() / 1000)
  const parts = (await make({}, {})).split('.')
  const encode = (o) => Buffer.from(JSON.stringify(o)).toString('base64url')
  const signed = await outcome(await make({}, {}))
  return {
    good: signed,
    none: await outcome(encode({ typ: 'dpop+jwt', alg: 'none', jwk }) + '.' + parts[1] + '.'),
    hmac: await outcome(await make({ alg: 'HS256' }, {}, new TextEncoder().encode(jwk.x.padEnd(64)))),
    private: await outcome(await make({ jwk: await jose.exportJWK(privateKey) }, {})),
    past: await outcome(await make({}, { at: now - 3600 })),
    future: await outcome(await make({}, { at: now + 3600 })),
    method: await outcome(await make({}, { htm: 'GET' })),
    host: await outcome(await make({}, { htu: 'https://evil.test/v1/credentials' })),
    nonce: await outcome(await make({}, { nonce: 'x' + nonce })),
    type: await outcome(await make({ typ: 'JWT' }, {})),
    big: await outcome(await make({}, { pad: 'x'.repeat(10000) })),
  }
})

console.log(JSON.stringify(out))
