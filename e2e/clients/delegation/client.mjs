// openid-client as an agent that acts on behalf of a person. The program prints one JSON object
// with what each call taught its caller. Arguments: a file with the person's tokens, the broker's
// URL and the SPIFFE ID of the caller. The JWT-SVID is in the environment.
import { readFileSync } from 'node:fs'
import * as jose from 'jose'
import * as client from 'openid-client'

const [, , file, url, id] = process.argv
const svid = process.env.SVID
const { jag, second, access, idToken } = JSON.parse(readFileSync(file, 'utf8'))
const out = {}
const bearer = 'urn:ietf:params:oauth:grant-type:jwt-bearer'
const exchange = 'urn:ietf:params:oauth:grant-type:token-exchange'
const type = (name) => 'urn:ietf:params:oauth:token-type:' + name

const authenticate = (as, cl, body) => {
  body.set('client_assertion_type', 'urn:ietf:params:oauth:client-assertion-type:jwt-spiffe')
  body.set('client_assertion', svid)
}
const config = await client.discovery(new URL(url), id, undefined, authenticate)
const keys = jose.createLocalJWKSet(await (await fetch(config.serverMetadata().jwks_uri)).json())

async function attempt(name, grant, parameters) {
  try {
    const got = await client.genericGrantRequest(config, grant, parameters)
    const { payload } = await jose.jwtVerify(got.access_token, keys, { issuer: config.serverMetadata().issuer, typ: 'at+jwt' })
    out[name] = { sub: payload.sub, actor: payload.act?.sub, scope: got.scope, audience: payload.aud }
  } catch (e) {
    out[name] = { error: e.error ?? e.name, description: e.error_description ?? e.message }
  }
}

const meta = config.serverMetadata()
out.metadata = {
  grant: meta.grant_types_supported.includes(bearer),
  profile: (meta.authorization_grant_profiles_supported ?? [])[0],
}
await attempt('id_jag', bearer, { assertion: jag })
await attempt('replayed', bearer, { assertion: jag })
await attempt('exchanged', exchange, { subject_token: second, subject_token_type: type('id-jag'), audience: 'tickets-api', scope: 'tickets:read' })
await attempt('access_token', exchange, {
  subject_token: access, subject_token_type: type('access_token'), actor_token: svid, actor_token_type: type('jwt'),
  audience: 'tickets-api', scope: 'tickets:read',
})
await attempt('id_token', exchange, { subject_token: idToken, subject_token_type: type('access_token'), audience: 'tickets-api', scope: 'tickets:read' })
await attempt('id_token_as_grant', bearer, { assertion: idToken })
console.log(JSON.stringify(out))
