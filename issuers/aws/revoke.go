package aws

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	iamtypes "github.com/aws/aws-sdk-go-v2/service/iam/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/aws-sdk-go-v2/service/sts/types"

	"accessbroker.internal/broker"
)

// AWS has no call that ends a session. An inline policy of the session's role can
// deny the session everything (IAM User Guide, "Revoking IAM role temporary security
// credentials"). The broker adds one for sessions that a person or the kill switch
// revokes, if the entitlement configures it, and not for those that their holder
// returns: a role has room for only some dozens of such policies.

// Deny selects the sessions that a revocation denies.
type Deny string

// The values of Deny.
const (
	DenyNone    Deny = ""
	DenySession Deny = "session" // the revoked one, by its session name
	DenyRole    Deny = "role"    // all earlier ones of the role, of other holders too
)

// Names of the inline policies.
const (
	denySessionPrefix = "access-broker-revoked-"
	denyBeforePolicy  = "access-broker-revoked-before"
)

// A denial is the handle of a lease whose session can be denied. Handles are
// stored: their JSON names must not change.
type denial struct {
	Role    string `json:"role"`              // its name, without the path
	Account string `json:"account,omitempty"` // empty in old handles
	Deny    Deny   `json:"deny"`

	Since *time.Time `json:"since,omitempty"` // of DenyLost: when the sessions were issued
	Until *time.Time `json:"until,omitempty"`
}

// denial returns the handle for the role's sessions; nil if they are not denied.
func (s *Spec) denial() []byte {
	if s.role.Revoke == DenyNone {
		return nil
	}
	_, path, _ := strings.Cut(s.role.RoleARN, ":role/")
	name := path[strings.LastIndexByte(path, '/')+1:]
	text, _ := json.Marshal(denial{Role: name, Account: accountOf(s.role.RoleARN), Deny: s.role.Revoke}) // strings always marshal
	return text
}

// Shares names the role whose other sessions a revocation ends, too, or "".
func (s *Spec) Shares() string {
	if s.role.Revoke == DenyRole {
		return s.role.RoleARN
	}
	return ""
}

func (c Config) checkRevoke(r Role, bad func(key, format string, args ...any)) {
	switch {
	case r.Revoke == DenyNone:
	case r.Revoke != DenySession && r.Revoke != DenyRole:
		bad("aws/revoke_sessions", "choose session, which denies the revoked one, or role, which denies all earlier sessions of the role")
	case c.Endpoint != "" && c.IAMEndpoint == "":
		bad("aws/revoke_sessions", "it requires AWS's IAM, which the issuer's endpoint lacks")
	case c.WebIdentity != nil && c.Revoker == "":
		bad("aws/revoke_sessions", "name the role that may deny sessions in the issuer's revoker_role_arn")
	case c.Revoker != "" && accountOf(c.Revoker) != accountOf(r.RoleARN):
		// IAM would look for a role of that name in the revoker's account.
		bad("aws/revoke_sessions", "the issuer's revoker_role_arn is in the account %s, and can deny only sessions of that account's roles: use another issuer for this role's account", accountOf(c.Revoker))
	}
}

// Revoke denies the session if the entitlement configures it. Otherwise a session ends
// only at its expiry.
func (a *Issuer) Revoke(ctx context.Context, l broker.Lease) error {
	switch {
	case string(l.Handle) == nothingIssued:
		return nil
	case len(l.Handle) == 0:
		return broker.ErrNotRevocable
	}
	d, ok := a.denialOf(l)
	if !ok {
		return broker.ForeignLease(l)
	}
	return a.revoke(ctx, l, d)
}

// revoke adds or removes the policy that denies a session. IAM takes seconds to
// spread a policy and never reports when that is done, so a denied session is
// queued until its expiry, and never confirmed.
func (a *Issuer) revoke(ctx context.Context, l broker.Lease, d denial) error {
	now := a.cfg.Now()
	over := !now.Before(l.Expires)
	if l.EndHow != broker.EndRevoked && l.EndHow != broker.EndFact || over && l.EndAsked.IsZero() {
		return broker.ErrNotRevocable
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var err error
	outcome := broker.ErrQueued
	switch {
	case d.Deny == DenyLost:
		if err = a.denyLost(ctx, d, over); over {
			outcome = broker.ErrNotRevocable
		}
	case over && d.Deny == DenySession:
		// The policy has served its purpose and takes up space.
		err, outcome = a.undeny(ctx, d.Role, denySessionPrefix+l.ID.String()), broker.ErrNotRevocable
	case over:
		return broker.ErrNotRevocable
	case d.Deny == DenySession:
		err = a.deny(ctx, d.Role, denySessionPrefix+l.ID.String(), "StringLike", "aws:userid", "*:"+l.ID.String())
	default:
		err = a.denyBefore(ctx, d.Role, l, now)
	}
	if err == nil {
		return outcome
	}
	err = failure("IAM", err)
	var none *notIssued
	if errors.As(err, &none) {
		return none.error
	}
	return err
}

// deny adds an inline policy to a role. Adding it again after a lost answer
// changes nothing.
func (a *Issuer) deny(ctx context.Context, role, name, operator, key, value string) error {
	return a.denyIf(ctx, role, name, map[string]any{operator: map[string]string{key: value}})
}

func (a *Issuer) denyIf(ctx context.Context, role, name string, condition map[string]any) error {
	document, err := json.Marshal(map[string]any{
		"Version": "2012-10-17",
		"Statement": []any{map[string]any{
			"Effect": "Deny", "Action": "*", "Resource": "*", "Condition": condition,
		}},
	})
	if err != nil {
		return err
	}
	_, err = a.iam.PutRolePolicy(ctx, &iam.PutRolePolicyInput{RoleName: &role, PolicyName: &name, PolicyDocument: aws.String(string(document))})
	return err
}

// undeny removes an inline policy from a role. It is no error if the policy or
// the role is gone.
func (a *Issuer) undeny(ctx context.Context, role, name string) error {
	_, err := a.iam.DeleteRolePolicy(ctx, &iam.DeleteRolePolicyInput{RoleName: &role, PolicyName: &name})
	var none *iamtypes.NoSuchEntityException
	if errors.As(err, &none) {
		return nil
	}
	return err
}

// denyBefore denies all sessions of a role that were issued before now. It does
// nothing if the policy covers this lease's session already, so that of a thousand
// revocations at once only the first writes.
func (a *Issuer) denyBefore(ctx context.Context, role string, l broker.Lease, now time.Time) error {
	out, err := a.iam.GetRolePolicy(ctx, &iam.GetRolePolicyInput{RoleName: &role, PolicyName: aws.String(denyBeforePolicy)})
	if err == nil && deniedBefore(aws.ToString(out.PolicyDocument)).After(l.Opened.Add(broker.IssueDeadline+clockSkew)) {
		return nil
	}
	var none *iamtypes.NoSuchEntityException
	if err != nil && !errors.As(err, &none) {
		return err
	}
	return a.deny(ctx, role, denyBeforePolicy, "DateLessThan", "aws:TokenIssueTime", now.UTC().Format(time.RFC3339))
}

// deniedBefore returns the time in a policy of denyBefore, which IAM returns
// URL-encoded. It is zero for any other policy.
func deniedBefore(document string) time.Time {
	text, err := url.PathUnescape(document)
	if err != nil {
		return time.Time{}
	}
	var policy struct {
		Statement []struct {
			Condition struct {
				DateLessThan map[string]time.Time
			}
		}
	}
	if json.Unmarshal([]byte(text), &policy) != nil || len(policy.Statement) != 1 {
		return time.Time{}
	}
	return policy.Statement[0].Condition.DateLessThan["aws:TokenIssueTime"]
}

// newIAM returns the client that denies sessions. It assumes the revoker's role if
// there is one, and uses the broker's own credentials otherwise.
func (a *Issuer) newIAM(own aws.CredentialsProvider) *iam.Client {
	by := own
	if a.cfg.Revoker != "" {
		by = aws.NewCredentialsCache(aws.CredentialsProviderFunc(a.assumeRevoker), func(o *aws.CredentialsCacheOptions) {
			o.ExpiryWindow = time.Minute
		})
	}
	options := iam.Options{
		Region: a.cfg.Region, HTTPClient: newHTTPClient(a.cfg.HTTP, a.cfg.Roots), Credentials: by,
		HTTPSignerV4: signer{}, Retryer: aws.NopRetryer{},
	}
	if a.cfg.IAMEndpoint != "" {
		options.BaseEndpoint = &a.cfg.IAMEndpoint
	}
	return iam.New(options)
}

// revoker is the session name of the broker's own sessions that deny others, and
// the sub of their assertion. No entitlement has that sub: theirs start with
// "entitlement:".
const revoker = "revoker"

// assumeRevoker assumes the role that may deny sessions.
func (a *Issuer) assumeRevoker(ctx context.Context) (aws.Credentials, error) {
	now := a.cfg.Now()
	seconds := int32(MinTTL / time.Second)
	if a.cfg.WebIdentity == nil {
		out, err := a.sts.AssumeRole(ctx, &sts.AssumeRoleInput{RoleArn: &a.cfg.Revoker, RoleSessionName: aws.String(revoker), DurationSeconds: &seconds})
		if err != nil {
			return aws.Credentials{}, failure("AssumeRole", err)
		}
		return credentialsOf(out.Credentials)
	}
	assertion, err := a.sign(map[string]any{"sub": revoker, "jti": broker.NewLeaseID(now).String()}, now)
	if err != nil {
		return aws.Credentials{}, err
	}
	out, err := a.sts.AssumeRoleWithWebIdentity(ctx, &sts.AssumeRoleWithWebIdentityInput{
		RoleArn: &a.cfg.Revoker, RoleSessionName: aws.String(revoker), WebIdentityToken: &assertion, DurationSeconds: &seconds,
	})
	if err != nil {
		return aws.Credentials{}, failure("AssumeRoleWithWebIdentity", err)
	}
	return credentialsOf(out.Credentials)
}

func credentialsOf(c *types.Credentials) (aws.Credentials, error) {
	if c == nil || aws.ToString(c.AccessKeyId) == "" || aws.ToString(c.SecretAccessKey) == "" || c.Expiration == nil {
		return aws.Credentials{}, fmt.Errorf("%w: STS answered without a credential", broker.ErrIssuerUnavailable)
	}
	return aws.Credentials{
		AccessKeyID: *c.AccessKeyId, SecretAccessKey: *c.SecretAccessKey, SessionToken: aws.ToString(c.SessionToken),
		CanExpire: true, Expires: *c.Expiration,
	}, nil
}

// Owns reports whether this issuer can end the lease. A lease without a handle
// ends only at its expiry, under any issuer.
func (a *Issuer) Owns(l broker.Lease) bool {
	if len(l.Handle) == 0 || string(l.Handle) == nothingIssued {
		return true
	}
	_, ok := a.denialOf(l)
	return ok
}

var roleName = regexp.MustCompile(`^[\w+=,.@-]{1,64}$`)

// denialOf returns the denial in a lease's handle, if this issuer can carry it
// out. In another account it would deny the sessions of a role of the same name.
func (a *Issuer) denialOf(l broker.Lease) (d denial, ok bool) {
	if json.Unmarshal(l.Handle, &d) != nil || !roleName.MatchString(d.Role) || d.Deny != DenySession && d.Deny != DenyRole && d.Deny != DenyLost {
		return d, false
	}
	return d, d.Account == "" || a.cfg.Revoker == "" || d.Account == accountOf(a.cfg.Revoker)
}

// accountOf returns the account of an ARN of IAM.
func accountOf(arn string) string {
	parts := strings.SplitN(arn, ":", 6)
	if len(parts) < 6 {
		return ""
	}
	return parts[4]
}
