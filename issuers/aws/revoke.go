package aws

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/iam/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"accessbroker.internal/broker"
)

// AWS has no call that ends a session. What comes closest is an inline policy
// of its role that denies everything (IAM User Guide, "Revoking IAM role
// temporary security credentials"). It is for sessions that a person or the kill
// switch revokes, where the entitlement says so, and not for those that are
// given back: a role takes some dozens of such policies and no more.

// Deny says which sessions are denied when one is revoked.
type Deny string

// The ways to deny.
const (
	DenyNone    Deny = ""
	DenySession Deny = "session" // that one, by its session name
	DenyRole    Deny = "role"    // all of the role that were made before, other holders' too
)

// Names of the inline policies.
const (
	awsDenyPrefix = "access-broker-revoked-"
	awsDenyBefore = "access-broker-revoked-before"
)

// An awsDenial is the handle of a lease whose session can be denied.
type awsDenial struct {
	Role    string `json:"role"` // its name, as IAM knows it
	Account string `json:"account,omitempty"`
	Deny    Deny   `json:"deny"`
}

// denial is the handle for a role; nil: its sessions are not denied.
func (s *Spec) denial() []byte {
	if s.role.Revoke == DenyNone {
		return nil
	}
	_, name, _ := strings.Cut(s.role.RoleARN, ":role/")
	text, _ := json.Marshal(awsDenial{name[strings.LastIndexByte(name, '/')+1:], awsAccount(s.role.RoleARN), s.role.Revoke}) // strings always marshal
	return text
}

// Shares names what ends with a session that is revoked, if that is more than
// itself: all of its role.
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
		bad("aws/revoke_sessions", "choose session, which denies the one that is revoked, or role, which denies all sessions of the role that were made before")
	case c.Endpoint != "" && c.IAMEndpoint == "":
		bad("aws/revoke_sessions", "it takes AWS's IAM, which the issuer's endpoint has not")
	case c.WebIdentity != nil && c.Revoker == "":
		bad("aws/revoke_sessions", "say in the issuer's revoker_role_arn which role may deny them")
	case c.Revoker != "" && awsAccount(c.Revoker) != awsAccount(r.RoleARN):
		// IAM would look for a role of that name in the revoker's own account.
		bad("aws/revoke_sessions", "the issuer's revoker_role_arn is in the account %s, and can deny sessions of roles of that account alone: use an issuer of its own for this role's account", awsAccount(c.Revoker))
	}
}

// revoke denies a session, if it was revoked and its lease says how. IAM takes
// some seconds to tell everybody and never says when it has: the truth is
// pending, until time has ended the session.
func (a *Issuer) revoke(ctx context.Context, l broker.Lease, d awsDenial) error {
	now := a.cfg.Now()
	over := !now.Before(l.Expires)
	if l.EndHow != broker.EndRevoked || over && l.EndAsked.IsZero() {
		return broker.ErrNotRevocable
	}
	ctx, cancel := context.WithTimeout(ctx, awsCallTime)
	defer cancel()
	var err error
	done := broker.ErrQueued
	switch {
	case over && d.Deny == DenySession:
		// Nothing is left to deny, but what denied it takes one of the role's few
		// places until it is gone.
		err, done = a.allow(ctx, d.Role, awsDenyPrefix+l.ID.String()), broker.ErrNotRevocable
	case over:
		return broker.ErrNotRevocable
	case d.Deny == DenySession:
		err = a.deny(ctx, d.Role, awsDenyPrefix+l.ID.String(), "StringLike", "aws:userid", "*:"+l.ID.String())
	default:
		err = a.denyBefore(ctx, d.Role, l, now)
	}
	if err == nil {
		return done
	}
	err = awsFailure("IAM", err)
	var nothing *awsMadeNothing
	if errors.As(err, &nothing) {
		return nothing.error
	}
	return err
}

// deny puts an inline policy on a role. Putting the same again changes nothing,
// so that an answer that was lost does no harm.
func (a *Issuer) deny(ctx context.Context, role, name, operator, key, value string) error {
	document, err := json.Marshal(map[string]any{
		"Version": "2012-10-17",
		"Statement": []any{map[string]any{
			"Effect": "Deny", "Action": "*", "Resource": "*", "Condition": map[string]any{operator: map[string]string{key: value}},
		}},
	})
	if err != nil {
		return err
	}
	_, err = a.iam.PutRolePolicy(ctx, &iam.PutRolePolicyInput{RoleName: &role, PolicyName: &name, PolicyDocument: aws.String(string(document))})
	return err
}

// allow takes an inline policy away from a role. One that is not there, or
// whose role is not, is no error.
func (a *Issuer) allow(ctx context.Context, role, name string) error {
	_, err := a.iam.DeleteRolePolicy(ctx, &iam.DeleteRolePolicyInput{RoleName: &role, PolicyName: &name})
	var none *types.NoSuchEntityException
	if errors.As(err, &none) {
		return nil
	}
	return err
}

// denyBefore denies all sessions of a role that were made before now, unless
// one that is later than this lease's session stands already: of a thousand
// that are revoked at once, the first does it.
func (a *Issuer) denyBefore(ctx context.Context, role string, l broker.Lease, now time.Time) error {
	out, err := a.iam.GetRolePolicy(ctx, &iam.GetRolePolicyInput{RoleName: &role, PolicyName: aws.String(awsDenyBefore)})
	if err == nil && deniedBefore(aws.ToString(out.PolicyDocument)).After(l.Opened.Add(broker.IssueDeadline+awsClockSkew)) {
		return nil
	}
	var none *types.NoSuchEntityException
	if err != nil && !errors.As(err, &none) {
		return err
	}
	return a.deny(ctx, role, awsDenyBefore, "DateLessThan", "aws:TokenIssueTime", now.UTC().Format(time.RFC3339))
}

// deniedBefore reads the time of a policy that denyBefore put, which IAM gives
// URL-encoded; zero if it is none.
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

// newIAM makes the client that denies. By an assertion, the broker assumes the
// role that may; else it may itself, or assumes the role by its own credentials.
func (a *Issuer) newIAM(client aws.HTTPClient, own aws.CredentialsProvider) *iam.Client {
	var by aws.CredentialsProvider = own
	if a.cfg.Revoker != "" {
		by = aws.NewCredentialsCache(aws.CredentialsProviderFunc(a.asRevoker), func(o *aws.CredentialsCacheOptions) {
			o.ExpiryWindow = time.Minute
		})
	}
	options := iam.Options{Region: a.cfg.Region, HTTPClient: client, Credentials: by, HTTPSignerV4: awsSigner{}, Retryer: aws.NopRetryer{}}
	if a.cfg.IAMEndpoint != "" {
		options.BaseEndpoint = &a.cfg.IAMEndpoint
	}
	return iam.New(options)
}

// awsRevoker names the broker's own sessions that deny others, and is the sub
// of its assertion for them: no entitlement's, which begin with "entitlement:".
const awsRevoker = "revoker"

// asRevoker assumes the role that may deny.
func (a *Issuer) asRevoker(ctx context.Context) (aws.Credentials, error) {
	now := a.cfg.Now()
	seconds := int32(MinTTL / time.Second)
	if a.cfg.WebIdentity == nil {
		out, err := a.sts.AssumeRole(ctx, &sts.AssumeRoleInput{RoleArn: &a.cfg.Revoker, RoleSessionName: aws.String(awsRevoker), DurationSeconds: &seconds})
		if err != nil {
			return aws.Credentials{}, awsFailure("AssumeRole", err)
		}
		return awsSessionOf(out.Credentials.AccessKeyId, out.Credentials.SecretAccessKey, out.Credentials.SessionToken, out.Credentials.Expiration)
	}
	assertion, err := a.sign(map[string]any{"sub": awsRevoker, "jti": broker.NewLeaseID(now).String()}, now)
	if err != nil {
		return aws.Credentials{}, err
	}
	out, err := a.sts.AssumeRoleWithWebIdentity(ctx, &sts.AssumeRoleWithWebIdentityInput{
		RoleArn: &a.cfg.Revoker, RoleSessionName: aws.String(awsRevoker), WebIdentityToken: &assertion, DurationSeconds: &seconds,
	})
	if err != nil {
		return aws.Credentials{}, awsFailure("AssumeRoleWithWebIdentity", err)
	}
	return awsSessionOf(out.Credentials.AccessKeyId, out.Credentials.SecretAccessKey, out.Credentials.SessionToken, out.Credentials.Expiration)
}

func awsSessionOf(id, secret, token *string, expires *time.Time) (aws.Credentials, error) {
	if aws.ToString(id) == "" || aws.ToString(secret) == "" || expires == nil {
		return aws.Credentials{}, fmt.Errorf("%w: STS answered without a credential", broker.ErrIssuerUnavailable)
	}
	return aws.Credentials{AccessKeyID: *id, SecretAccessKey: *secret, SessionToken: aws.ToString(token), CanExpire: true, Expires: *expires}, nil
}

// Owns reports whether this issuer can end the lease. A lease without a handle
// ends only at its expiry, under any issuer.
func (a *Issuer) Owns(l broker.Lease) bool {
	if len(l.Handle) == 0 || string(l.Handle) == awsNothing {
		return true
	}
	_, ok := a.denialOf(l)
	return ok
}

// denialOf reads the handle of a lease whose session can be denied, by us.
func (a *Issuer) denialOf(l broker.Lease) (d awsDenial, ok bool) {
	if json.Unmarshal(l.Handle, &d) != nil || !awsRoleName.MatchString(d.Role) || d.Deny != DenySession && d.Deny != DenyRole {
		return d, false
	}
	// The role of that name in another account would be denied what it may.
	return d, d.Account == "" || a.cfg.Revoker == "" || d.Account == awsAccount(a.cfg.Revoker)
}

// awsAccount gives the account that an ARN of IAM is in.
func awsAccount(arn string) string {
	parts := strings.SplitN(arn, ":", 6)
	if len(parts) < 6 {
		return ""
	}
	return parts[4]
}
