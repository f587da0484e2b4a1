// A client whose types are generated from the OpenAPI document. It requests a credential
// of each entitlement and prints what it got, one JSON object a line. Arguments: the
// broker's URL and entitlements. The JWT-SVID is in the environment.
import createClient from 'openapi-fetch'
import type { components, paths } from './broker.js'

declare const process: { argv: string[]; env: Record<string, string | undefined> }

type Credential = components['schemas']['Credential']

// use returns what a program needs to use a credential, without the secret part. The
// compiler knows the fields of each type, and that no type is missing.
function use(c: Credential): string {
  switch (c.type) {
    case 'bearer':
      // @ts-expect-error: a token has no password
      void c.secret.password
      return `token ${c.secret.token.slice(0, 2)}`
    case 'vault':
      return `token ${c.secret.token.slice(0, 4)}`
    case 'aws':
      // @ts-expect-error: the keys of an IAM user have no session token
      void c.secret.session_token.length
      return `key ${c.secret.access_key_id}`
    case 'userpass':
      return `user ${c.secret.username}`
    case 'certificate':
      return `chain ${c.secret.chain?.split('\n')[0]}`
    case 'data':
      return `fields ${Object.keys(c.secret).sort().join()}`
    case 'membership':
      // @ts-expect-error: a membership has no secret
      void c.secret
      return `member of ${c.membership.group} in ${c.membership.system}`
    default: {
      const missing: never = c
      return missing
    }
  }
}

// @ts-expect-error: without its type, the fields of a secret are not known
export const token = (c: Credential) => c.secret.token

const [url, ...entitlements] = process.argv.slice(2)
const broker = createClient<paths>({ baseUrl: url, headers: { authorization: `Bearer ${process.env.SVID}` } })

const { data: who, error } = await broker.GET('/v1/whoami')
if (!who) throw new Error(error.detail)
console.log(JSON.stringify({ id: who.id, kind: who.kind }))

for (const entitlement of entitlements) {
  const { data, error, response } = await broker.POST('/v1/credentials', {
    body: { entitlement, justification: 'Triage of ticket 4711' },
    params: { header: { 'Idempotency-Key': crypto.randomUUID() } },
  })
  let line: Record<string, unknown> = { code: error?.code }
  if (data && 'lease' in data) line = { type: data.type, use: use(data), expires: new Date(data.expires_at) > new Date(0) }
  else if (data) line = { pending: data.id }
  console.log(JSON.stringify({ entitlement, status: response.status, ...line }))
}
