// openid-client and oauth4webapi wait for people in the standard ways. The program prints
// one line of JSON for each step. Arguments: the broker's URL and the SPIFFE ID of the
// caller. The JWT-SVID is in the environment.
import * as client from 'openid-client'
import * as oauth from 'oauth4webapi'
import { createInterface } from 'node:readline/promises'

const [, , url, id] = process.argv
const authenticate = (as, cl, body) => {
  body.set('client_assertion_type', 'urn:ietf:params:oauth:client-assertion-type:jwt-spiffe')
  body.set('client_assertion', process.env.SVID)
}
const step = (name, facts) => console.log(JSON.stringify({ step: name, ...facts }))
const sleep = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000))
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]()
const deferred = 'urn:ietf:params:oauth:grant-type:deferred'
const ask = { audience: 'tickets-api', scope: 'tickets:close', justification: 'a standard client waits' }

const config = await client.discovery(new URL(url), id, undefined, authenticate)
const server = config.serverMetadata()
step('metadata', {
  deferred: server.deferred_token_response_supported,
  modes: server.backchannel_token_delivery_modes_supported,
  revocable: server.revocation_endpoint_token_type_values_supported,
})

// defer begins with the client credentials grant, and returns the deferred response.
async function defer(ticket) {
  try {
    await client.clientCredentialsGrant(config, { ...ask, ticket, completion_mode: 'deferred' })
  } catch (e) {
    if (e.error === 'authorization_pending') return e.cause
    throw e
  }
  throw new Error('the token was not deferred')
}

// follow polls as the deferred response says. A broker that does not answer is polled again.
async function follow(response) {
  for (;;) {
    await sleep(response.interval)
    try {
      return await client.genericGrantRequest(config, deferred, { deferral_code: response.deferral_code })
    } catch (e) {
      if (e.error !== 'authorization_pending' && e.code !== 'OAUTH_TIMEOUT' && !(e instanceof TypeError) && e.status !== 503) throw e
    }
  }
}

// refused returns the OAuth error of a poll.
async function refused(code) {
  try {
    await client.genericGrantRequest(config, deferred, { deferral_code: code })
  } catch (e) {
    return { status: e.status, error: e.error }
  }
  return { error: 'a token was issued' }
}

// openid-client: the deferred response.
const first = await defer('W-1')
step('asked', { request: first.request_id, way: 'deferred' })
const got = await follow(first)
step('token', { type: got.token_type, scope: got.scope, request: got.request_id, again: await refused(first.deferral_code) })

// openid-client: cancellation by revocation.
const second = await defer('W-2')
step('fast', { once: await refused(second.deferral_code), twice: await refused(second.deferral_code) })
await client.tokenRevocation(config, second.deferral_code, { token_type_hint: 'urn:ietf:params:oauth:token-type:deferral-code' })
step('cancelled', { request: second.request_id, after: await refused(second.deferral_code) })

// openid-client: CIBA.
const begun = await client.initiateBackchannelAuthentication(config, {
  ...ask, scope: 'openid tickets:close', login_hint: id, binding_message: 'W-3 <b>4711</b>', requested_expiry: '600', ticket: 'W-3',
})
step('asked', { request: begun.request_id, way: 'backchannel', expires: begun.expires_in })
const token = await client.pollBackchannelAuthenticationGrant(config, begun)
step('token', { type: token.token_type, scope: token.scope, request: token.request_id })

// oauth4webapi: CIBA with a person's name as the hint, and with the client itself.
const begin = async (hint) => {
  const cl = { client_id: id }
  const response = await oauth.backchannelAuthenticationRequest(server, cl, authenticate, { ...ask, login_hint: hint, ticket: 'W-4' })
  return oauth.processBackchannelAuthenticationResponse(server, cl, response)
}
let unknown
try {
  await begin('ana@acme.test')
} catch (e) {
  unknown = { status: e.status, error: e.error }
}
const other = await begin(id)
const poll = async () => {
  const cl = { client_id: id }
  const response = await oauth.backchannelAuthenticationGrantRequest(server, cl, authenticate, other.auth_req_id)
  try {
    const done = await oauth.processBackchannelAuthenticationGrantResponse(server, cl, response)
    return { status: 200, type: done.token_type }
  } catch (e) {
    return { status: e.status, error: e.error }
  }
}
step('asked', { request: other.request_id, way: 'oauth4webapi', unknown, pending: await poll() })
await lines.next() // the request was denied
await sleep(other.interval)
step('denied', await poll())
process.exit(0)
