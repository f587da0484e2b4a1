package issuers

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"accessbroker.internal/broker"
)

// timed says whether what a Vault made works until a time, whatever becomes of
// its lease, and until when:
//
//   - sessions of AWS STS: revoking their lease does nothing (AWS secrets engine);
//   - tokens of Kubernetes: that deletes what was made for them, and a token of a
//     service account that was there before goes on (Kubernetes secrets engine);
//   - tokens of Google Cloud, which have no lease (GCP secrets engine);
//   - what the entitlement says is like that.
func (s *VaultSpec) timed(a *vaultAnswer, kind string, fields map[string]string, given time.Time) (until time.Time, timed bool) {
	if s.Lasting || s.static() || kind == "certificate" {
		return time.Time{}, false
	}
	leased := a.LeaseID != "" && a.LeaseDuration > 0
	at, dated := a.Data["expires_at_seconds"].(json.Number)
	switch {
	case leased && (kind == "aws" && fields["session_token"] != "" || fields["service_account_token"] != "" || s.Timed):
		return given, true
	case a.LeaseID == "" && dated && fields["token"] != "":
		seconds, err := at.Int64()
		return time.Unix(seconds, 0), err == nil
	}
	return time.Time{}, false
}

// timedCredential is one that only time ends. Its lease, if it has one, is
// revoked all the same: that cleans up after it.
func timedCredential(kind string, fields map[string]string, l *broker.Lease, until time.Time, h *vaultHandle) (broker.Credential, error) {
	if h.Made = endByItself; h.Lease != "" {
		h.Made = endTimed
	}
	if until.After(l.Expires.Add(vaultSlack)) {
		return broker.Credential{}, outlives("what was made", until)
	}
	return seal(kind, fields, earlier(l.Expires, until, true), broker.RevokedAtExpiry), nil
}

// sshCertificate holds an SSH certificate to its lease, and to the names that
// were asked for (OpenSSH, PROTOCOL.certkeys).
func sshCertificate(fields map[string]string, l *broker.Lease, sent vaultCall) (broker.Credential, error) {
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(fields["signed_key"]))
	cert, ok := key.(*ssh.Certificate)
	if err != nil || !ok {
		return broker.Credential{}, fmt.Errorf("%w: the answer's signed key can't be read as a certificate", broker.ErrIssuerRefused)
	}
	if cert.ValidBefore > uint64(l.Expires.Add(vaultSlack).Unix()) { // "for ever" is the largest number there is
		return broker.Credential{}, fmt.Errorf(`%w: the certificate lives for longer than its lease: write ttl: "${ttl}" in data`, broker.ErrIssuerRefused)
	}
	if asked, ok := sent.data["valid_principals"].(string); ok {
		names := strings.Split(asked, ",")
		for _, name := range cert.ValidPrincipals {
			if !slices.Contains(names, name) {
				return broker.Credential{}, fmt.Errorf("%w: the certificate names %q, which was not asked for", broker.ErrIssuerRefused, name)
			}
		}
	}
	if len(cert.ValidPrincipals) == 0 {
		return broker.Credential{}, fmt.Errorf("%w: the certificate names nobody, and so lets in as everybody: write valid_principals in data", broker.ErrIssuerRefused)
	}
	return seal("data", fields, earlier(l.Expires, time.Unix(int64(cert.ValidBefore), 0), true), broker.RevokedAtExpiry), nil
}
