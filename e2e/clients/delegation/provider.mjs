// An OpenID provider, oidc-provider, that issues ID-JAGs by token exchange
// (draft-ietf-oauth-identity-assertion-authz-grant-03, section 4.3) and access tokens for an
// audience that is reserved for delegation. It prints its issuer. Arguments: the port, and
// the redirect URI of the agent's client.
import { randomUUID } from 'node:crypto'
import * as jose from 'jose'
import { errors, Provider } from 'oidc-provider'

const [, , port, redirect] = process.argv
const issuer = `http://127.0.0.1:${port}`
const exchange = 'urn:ietf:params:oauth:grant-type:token-exchange'
const idJAG = 'urn:ietf:params:oauth:token-type:id-jag'
const { privateKey, publicKey } = await jose.generateKeyPair('ES256', { extractable: true })
const jwk = { ...(await jose.exportJWK(privateKey)), kid: 'idp-1', alg: 'ES256', use: 'sig' }

// The clients of the agent at the broker, by its clients at this provider.
const clientsAtBroker = { 'agent-app': 'mcp-client', 'other-app': 'other-client' }
const client = (id) => ({
  client_id: id,
  client_secret: 's3cret-of-' + id,
  redirect_uris: [redirect],
  grant_types: ['authorization_code', exchange],
  token_endpoint_auth_method: 'client_secret_post',
  id_token_signed_response_alg: 'ES256',
})
const groups = { ana: ['support'], eve: [] }

const provider = new Provider(issuer, {
  clients: Object.keys(clientsAtBroker).map(client),
  jwks: { keys: [jwk] },
  cookies: { keys: [randomUUID()] },
  claims: { openid: ['sub', 'groups'] },
  conformIdTokenClaims: false,
  pkce: { required: () => false },
  findAccount: async (ctx, sub) => ({ accountId: sub, claims: async () => ({ sub, groups: groups[sub] ?? [] }) }),
  extraTokenClaims: async (ctx, token) => ({ groups: groups[token.accountId] ?? [] }),
  features: {
    devInteractions: { enabled: true },
    resourceIndicators: {
      enabled: true,
      getResourceServerInfo: async () => ({
        scope: 'tickets:read', audience: 'broker-agents', accessTokenFormat: 'jwt', jwt: { sign: { alg: 'ES256' } },
      }),
    },
  },
})

const parameters = ['audience', 'resource', 'scope', 'subject_token', 'subject_token_type', 'requested_token_type']
provider.registerGrantType(
  exchange,
  async (ctx) => {
    const { client, params } = ctx.oidc
    if (params.requested_token_type !== idJAG || params.subject_token_type !== 'urn:ietf:params:oauth:token-type:id_token') {
      throw new errors.InvalidRequest('this provider exchanges ID tokens for ID-JAGs')
    }
    // The client's own ID token: its audience is the client.
    const { payload } = await jose.jwtVerify(params.subject_token, publicKey, { issuer, audience: client.clientId }).catch((e) => {
      throw new errors.InvalidGrant(e.message)
    })
    const claims = { client_id: clientsAtBroker[client.clientId], resource: params.resource, scope: params.scope, groups: groups[payload.sub] ?? [] }
    ctx.body = {
      issued_token_type: idJAG,
      token_type: 'N_A',
      expires_in: 300,
      access_token: await new jose.SignJWT(claims)
        .setProtectedHeader({ alg: 'ES256', kid: 'idp-1', typ: 'oauth-id-jag+jwt' })
        .setIssuer(issuer).setSubject(payload.sub).setAudience(params.audience).setJti(randomUUID())
        .setIssuedAt().setExpirationTime('5m').sign(privateKey),
    }
  },
  parameters,
)
provider.listen(Number(port), '127.0.0.1', () => console.log(issuer))
