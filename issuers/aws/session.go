package aws

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"time"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sts/types"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// A session is a request to STS.
type session struct {
	spec    *Spec
	lease   *broker.Lease
	policy  string
	seconds int32
}

var errShortLease = &broker.Refusal{Err: broker.ErrInvalidTTL, Detail: fmt.Sprintf("AWS makes no session shorter than %s: request a longer ttl", broker.FormatDuration(MinTTL))}

// newSession returns the session to request at now, if the request may take up to
// slack to reach STS.
func newSession(o *broker.Order, now time.Time, slack time.Duration) (*session, error) {
	if o.Entitlement == nil {
		return nil, errors.New("the order has no entitlement")
	}
	spec, ok := o.Entitlement.Spec.(*Spec)
	if !ok {
		return nil, fmt.Errorf("entitlement %s has no AWS spec", o.Entitlement.Name)
	}
	policy, err := spec.SessionPolicy(o.Lease.Scopes, o.Lease.Parameters)
	if err != nil {
		return nil, err
	}
	left := o.Lease.Expires.Sub(now)
	if left < MinTTL-broker.IssueDeadline {
		return nil, errShortLease
	}
	return &session{spec: spec, lease: &o.Lease, policy: policy, seconds: sessionSeconds(left, slack)}, nil
}

// sessionSeconds returns the DurationSeconds with which a session ends no later
// than its lease. STS counts from when the request arrives, which is slack from
// now at the latest. A session that STS can't make short enough outlives its lease
// by no more than the request took.
func sessionSeconds(left, slack time.Duration) int32 {
	return int32(min(max(left-slack, MinTTL), MaxTTL) / time.Second)
}

func (s *session) managedPolicies() []types.PolicyDescriptorType {
	var list []types.PolicyDescriptorType
	for _, arn := range s.spec.role.ManagedPolicies {
		list = append(list, types.PolicyDescriptorType{Arn: aws.String(arn)})
	}
	return list
}

// tags returns the session tags, which lead from CloudTrail to the audit record,
// and which the role's policies can match. None is transitive.
func (s *session) tags() map[string]string {
	return map[string]string{
		"holder": tagValue(s.lease.Holder), "entitlement": tagValue(s.lease.Entitlement), "request": s.lease.Request.String(),
	}
}

// tagText matches the characters of a session tag. It leaves the length to
// maxTag: a bound of 256 in the expression would cost ten megabytes.
var tagText = regexp.MustCompile(`^[\p{L}\p{Z}\p{N}_.:/=+\-@]+$`)

const maxTag = 256 // characters

// tagValue returns a text as the value of a session tag: its SHA-256 if AWS
// doesn't accept it.
func tagValue(s string) string {
	if utf8.RuneCountInString(s) <= maxTag && tagText.MatchString(s) {
		return s
	}
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// credential returns the session that STS made as a credential. It expires with
// the lease, or with the session if that is earlier by our clock or by that of
// STS. A session that is much longer than requested is not handed out.
func (s *session) credential(made *types.Credentials, sent, now time.Time) (broker.Credential, error) {
	if made == nil || made.Expiration == nil || aws.ToString(made.AccessKeyId) == "" || aws.ToString(made.SecretAccessKey) == "" || aws.ToString(made.SessionToken) == "" {
		return broker.Credential{}, fmt.Errorf("%w: STS answered without a credential", broker.ErrIssuerUnavailable)
	}
	ttl := time.Duration(s.seconds) * time.Second
	if made.Expiration.After(now.Add(ttl + clockSkew)) {
		return broker.Credential{}, fmt.Errorf("%w: STS made a session that is longer than requested", broker.ErrIssuerUnavailable)
	}
	expires := s.lease.Expires
	for _, t := range []time.Time{*made.Expiration, sent.Add(ttl)} {
		if t.Before(expires) {
			expires = t.Truncate(time.Second)
		}
	}
	if !expires.After(now) {
		return broker.Credential{}, fmt.Errorf("%w: STS made a session that has expired by our clock", broker.ErrIssuerUnavailable)
	}
	fields := map[string]string{"access_key_id": *made.AccessKeyId, "secret_access_key": *made.SecretAccessKey, "session_token": *made.SessionToken}
	hash, _ := audit.Commit(string(audit.AppendStrings(nil, fields)))
	return broker.Credential{
		Type: "aws", Secret: broker.NewSecret(fields), Expires: expires.UTC(), Revocation: broker.RevokedAtExpiry, Hash: hash,
	}, nil
}
