// A resource server in JavaScript: it checks a token of the broker with jose, and reads the
// token's status from its list (draft-ietf-oauth-status-list), with nothing of the broker. It
// prints one JSON object. Arguments: the broker's URL and the audience. The token is in the
// environment.
import { createRemoteJWKSet, jwtVerify } from 'jose'
import { inflateSync } from 'node:zlib'

const [, , issuer, audience] = process.argv
const metadata = await (await fetch(issuer + '/.well-known/oauth-authorization-server')).json()
const keys = createRemoteJWKSet(new URL(metadata.jwks_uri))

const { payload } = await jwtVerify(process.env.TOKEN, keys, { issuer, audience, typ: 'at+jwt', requiredClaims: ['exp', 'sub'] })
const { idx, uri } = payload.status.status_list

const answer = await fetch(uri, { headers: { accept: 'application/statuslist+jwt' } })
const list = await jwtVerify(await answer.text(), keys, { subject: uri, typ: 'statuslist+jwt', requiredClaims: ['iat', 'exp', 'ttl'] })
const { bits, lst } = list.payload.status_list
const bytes = inflateSync(Buffer.from(lst, 'base64url'))
const perByte = 8 / bits
const status = (bytes[Math.floor(idx / perByte)] >> ((idx % perByte) * bits)) & ((1 << bits) - 1)

const all = await (await fetch(metadata.status_list_aggregation_endpoint)).json()
console.log(JSON.stringify({
  subject: payload.sub, scope: payload.scope, type: answer.headers.get('content-type'), cors: answer.headers.get('access-control-allow-origin'),
  size: bytes.length * perByte, listed: all.status_lists.includes(uri), status,
}))
