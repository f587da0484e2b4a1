package e2e

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
)

// sessionEntitlements are entitlements to sessions that Vault gets from an STS.
const sessionEntitlements = `
  reports-session: {issuer: vault, vault: {path: aws/sts/reports, policies: [sessions], data: {ttl: "${ttl}"}}, max_ttl: 1h}
  reports-long: {issuer: vault, vault: {path: aws/sts/reports, policies: [sessions]}, max_ttl: 15m}`

// testSessions has Vault get sessions from a real STS. Vault's leases end with the
// mount's max_lease_ttl and the sessions do not, so the broker has to report the
// sessions' own expiry.
func testSessions(t *testing.T, l *lab) {
	m := startMinIO(t, minioOpenID{})
	m.must(t, "mb", "it/reports")
	publisher := m.user(t, "publisher", "readwrite")
	if err := m.put(t, publisher, "reports", "q1", "green"); err != nil {
		t.Fatal(err)
	}
	sts := intercept(t, m.address(), m.caFile(), false)
	sts.handle(answerCallerIdentity)
	l.vault.mount(t, "aws", nil)
	l.vault.must(t, "POST", "sys/mounts/aws/tune", fields{"max_lease_ttl": "5m"})
	l.vault.must(t, "POST", "aws/config/root", fields{
		"access_key": publisher.AccessKeyID, "secret_key": publisher.SecretAccessKey, "region": "us-east-1", "sts_region": "us-east-1", "sts_endpoint": sts.URL,
	})
	l.vault.must(t, "POST", "aws/roles/reports", fields{
		"credential_type": "assumed_role", "role_arns": "arn:aws:iam::123456789012:role/reports", "default_sts_ttl": "1h", "max_sts_ttl": "2h",
	})

	asked := time.Now()
	c := l.issue(t, api.Ask{Entitlement: "reports-session", Justification: "e2e", TTL: api.Duration(15 * time.Minute)})
	session := awsCredential{AccessKeyID: c.Secret["access_key_id"], SecretAccessKey: c.Secret["secret_access_key"], SessionToken: c.Secret["session_token"]}
	if c.Type != "aws" || c.Revocation != "at_expiry" || c.ExpiresAt.Before(asked.Add(14*time.Minute)) {
		t.Errorf("the session is %s, %s, until %s", c.Type, c.Revocation, c.ExpiresAt)
	}
	if text, err := m.get(t, session, "reports", "q1"); err != nil || text != "green" {
		t.Errorf("with the session: %q, %v", text, err)
	}
	lease, err := l.agent.Revoke(t.Context(), c.Lease, "done")
	if err != nil || lease.Revocation != "at_expiry" || !lease.WorksUntil.Equal(c.ExpiresAt) {
		t.Errorf("returned: %+v, %v", lease, err)
	}
	if _, err := m.get(t, session, "reports", "q1"); err != nil {
		t.Errorf("a session can't be revoked, so it has to work: %v", err)
	}

	// Vault's lease is for five minutes, the session for an hour.
	_, _, err = l.agent.AskAndCollect(t.Context(), api.Ask{Entitlement: "reports-long", Justification: "e2e"})
	if err := wantRefusal(err, api.IssuerRefused, http.StatusBadGateway); err != nil {
		t.Errorf("a session that outlives its lease: %v", err)
	}
}

// answerCallerIdentity answers GetCallerIdentity, which Vault calls first at every
// STS and MinIO does not implement.
func answerCallerIdentity(w http.ResponseWriter, r *http.Request) bool {
	body, err := io.ReadAll(r.Body)
	r.Body = io.NopCloser(bytes.NewReader(body))
	if err != nil || !strings.Contains(string(body), "Action=GetCallerIdentity") {
		return false
	}
	_, _ = io.WriteString(w, `<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult>`+
		`<Arn>arn:aws:iam::123456789012:user/publisher</Arn><UserId>AIDA</UserId><Account>123456789012</Account></GetCallerIdentityResult></GetCallerIdentityResponse>`)
	return true
}
