// An OpenID provider, oidc-provider, in the place of a CI service: its grant "job" issues an ID
// token for a job, as GitHub Actions and GitLab document theirs. It prints its issuer.
// Arguments: the port, and the kid of its key, of which there is a new one at each start.
//
// The parameters of the grant: claims (JSON) are those of the token; null removes one. header
// (JSON) changes its header. key is "own", or "other" for one that is not published, or
// "public" for a MAC with the public key.
import { randomUUID } from 'node:crypto'
import * as jose from 'jose'
import { Provider } from 'oidc-provider'

const [, , port, kid] = process.argv
const issuer = `http://127.0.0.1:${port}`
const { privateKey, publicKey } = await jose.generateKeyPair('RS256', { extractable: true })
const other = await jose.generateKeyPair('RS256')
const jwk = { ...(await jose.exportJWK(privateKey)), kid, alg: 'RS256', use: 'sig' }
const mac = new TextEncoder().encode(await jose.exportSPKI(publicKey))

const provider = new Provider(issuer, {
  clients: [{ client_id: 'runner', client_secret: 's3cret-of-runner', redirect_uris: [], response_types: [], grant_types: ['job'], token_endpoint_auth_method: 'client_secret_post' }],
  jwks: { keys: [jwk] },
  cookies: { keys: [randomUUID()] },
  features: { devInteractions: { enabled: false } },
})
provider.registerGrantType(
  'job',
  async (ctx) => {
    const { params } = ctx.oidc
    const now = Math.floor(Date.now() / 1000)
    const claims = { iss: issuer, iat: now, nbf: now - 600, exp: now + 300, jti: randomUUID(), ...JSON.parse(params.claims) }
    for (const name of Object.keys(claims)) if (claims[name] === null) delete claims[name]
    const header = { alg: params.key === 'public' ? 'HS256' : 'RS256', typ: 'JWT', kid, ...JSON.parse(params.header ?? '{}') }
    const key = { other: other.privateKey, public: mac }[params.key] ?? privateKey
    ctx.body = { id_token: await new jose.SignJWT(claims).setProtectedHeader(header).sign(key) }
  },
  ['claims', 'header', 'key'],
)
provider.listen(Number(port), '127.0.0.1', () => console.log(issuer))
