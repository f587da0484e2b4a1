// openid-client and oauth4webapi as OAuth clients of the broker. The program prints one
// JSON object with what each call taught its caller. Arguments: the broker's URL and
// the SPIFFE ID of the caller. The JWT-SVID is in the environment.
import * as client from 'openid-client'
import * as oauth from 'oauth4webapi'

const [, , url, id] = process.argv
const svid = process.env.SVID
const out = {}

// tell returns what a client library reports of a failed call.
function tell(e) {
  const challenge = Array.isArray(e.cause) ? e.cause[0].parameters : undefined
  return {
    thrown: e.name,
    error: e.error ?? challenge?.error,
    description: e.error_description ?? challenge?.error_description,
  }
}

async function attempt(name, run) {
  try {
    out[name] = await run()
  } catch (e) {
    out[name] = tell(e)
  }
}

const assertion = (token) => (as, cl, body) => {
  body.set('client_assertion_type', 'urn:ietf:params:oauth:client-assertion-type:jwt-spiffe')
  body.set('client_assertion', token)
}
const bearer = (token) => (as, cl, body, headers) => headers.set('authorization', 'Bearer ' + token)
const ask = { audience: 'tickets-api', scope: 'tickets:read' }
const config = (authenticate) => client.discovery(new URL(url), id, undefined, authenticate)

for (const [name, authenticate] of Object.entries({ assertion, bearer })) {
  await attempt(name, async () => {
    const got = await client.clientCredentialsGrant(await config(authenticate(svid)), ask)
    return { type: got.token_type, scope: got.scope }
  })
  await attempt(name + '_bad', async () => client.clientCredentialsGrant(await config(authenticate(svid + 'x')), ask))
}
await attempt('no_proof', async () => client.clientCredentialsGrant(await config(client.None()), ask))
await attempt('denied', async () => client.clientCredentialsGrant(await config(assertion(svid)), { audience: 'nope', scope: 'a' }))
await attempt('details_refused', async () =>
  client.clientCredentialsGrant(await config(assertion(svid)), { ...ask, authorization_details: '[{"type":"payment_initiation"}]' }))
await attempt('details', async () => {
  const details = [{ type: 'urn:access-broker:parameters', parameters: { queue: 'billing' } }]
  const got = await client.clientCredentialsGrant(await config(assertion(svid)), {
    audience: 'queue-api', scope: 'queue:read', authorization_details: JSON.stringify(details),
  })
  return { details: got.authorization_details }
})
await attempt('introspected', async () => {
  const c = await config(assertion(svid))
  const got = await client.clientCredentialsGrant(c, ask)
  const live = await client.tokenIntrospection(c, got.access_token)
  await client.tokenRevocation(c, got.access_token)
  const dead = await client.tokenIntrospection(c, got.access_token)
  return { live: live.active, dead: dead.active }
})
await attempt('introspection_bad', async () => client.tokenIntrospection(await config(bearer('x')), 'token'))
const call = (token, path, init = {}) =>
  oauth.protectedResourceRequest(token, init.method ?? 'GET', new URL(url + path), new Headers({ 'content-type': 'application/json' }), init.body)
await attempt('api', async () => ({ status: (await call(svid, '/v1/whoami')).status }))
await attempt('api_bad', async () => call('x', '/v1/whoami'))
await attempt('api_denied', async () => call(svid, '/v1/requests', { method: 'POST', body: '{"entitlement":"nope","scopes":["a"]}' }))

console.log(JSON.stringify(out))
