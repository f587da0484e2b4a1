package aws

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"accessbroker.internal/broker"
)

// Bounds of STS (AWS STS API Reference, AssumeRole and AssumeRoleWithWebIdentity).
const (
	MinTTL      = 15 * time.Minute // the least DurationSeconds is 900
	MaxTTL      = 12 * time.Hour   // the most that a role can be set to
	ChainMaxTTL = time.Hour        // for a role that another role assumes, regardless of its setting

	maxPolicy          = 2048 // characters of the session policy and of the managed policies' ARNs
	maxManagedPolicies = 10
)

// A Role is an entitlement at AWS as the operator wrote it.
type Role struct {
	RoleARN         string
	FullRole        bool     // the session policy allows everything that the role may do
	ManagedPolicies []string // ARNs; they add to every scope
	ExternalID      string   // that the role's trust policy requires
	Chain           bool     // the broker's own credentials are those of a role
	Revoke          Deny     // the sessions that a revocation denies
	Scopes          map[string]Scope
}

// A Scope is the permission of one scope. The last part of a resource's ARN may
// reference required parameters of the entitlement as ${name}.
type Scope struct {
	Actions   []string
	Resources []string
}

var (
	roleARN        = regexp.MustCompile(`^arn:(aws[a-z-]*):iam::([0-9]{12}):role/(?:[\w+=,.@-]+/)*[\w+=,.@-]{1,64}$`)
	foreignRoleARN = regexp.MustCompile(`^arn:([a-z][a-z0-9-]*):iam::([0-9]{12})?:role/(?:[\w+=,.@-]+/)*[\w+=,.@-]{1,64}$`)
	managedARN     = regexp.MustCompile(`^arn:([a-z][a-z0-9-]*):iam::(aws|[0-9]{12}):policy/(?:[\w+=,.@-]+/)*[\w+=,.@-]{1,128}$`)
	externalID     = regexp.MustCompile(`^[\w+=,.@:/-]{2,}$`)
	action         = regexp.MustCompile(`^[a-z][a-z0-9-]*:[A-Za-z0-9*?]+$`)
	resource       = regexp.MustCompile(`^arn:([a-z][a-z0-9-]*):[a-z][a-z0-9-]*:[a-z0-9-]*:(?:[0-9]{12}|aws|\*)?:(.+)$`)
	reference      = regexp.MustCompile(`\$\{([^{}$]*)\}`)
)

// Compile returns the spec of an entitlement. It calls bad for each mistake, with
// the key in the entitlement ("aws/role_arn", "scopes/read/resources/0",
// "max_ttl") and a sentence that says what to do. A spec with a mistake must not
// be used.
func (c Config) Compile(r Role, e *broker.Entitlement, bad func(key, format string, args ...any)) *Spec {
	s := &Spec{role: r, endpoint: c.Endpoint, scopes: map[string]scope{}, parameters: map[string]allowance{}}
	s.role.Scopes = nil
	s.role.ManagedPolicies = slices.Sorted(slices.Values(r.ManagedPolicies))
	for name, p := range e.Parameters {
		s.parameters[name] = allowanceOf(p.Pattern)
	}
	partition := c.checkRole(r, bad)
	c.checkAssumeRoleOnly(r, bad)
	checkManaged(r, partition, bad)
	checkTTL(r, e, bad)
	checkFullRole(r, bad)
	c.checkRevoke(r, bad)
	for _, name := range slices.Sorted(maps.Keys(r.Scopes)) {
		check := scopeCheck{partition, e.Parameters, "scopes/" + name, bad}
		s.scopes[name] = check.compile(r.Scopes[name])
	}
	if n := s.longest(e.Parameters); n > maxPolicy {
		bad("scopes", "the session policy of all scopes with the longest parameters has %d characters, and AWS accepts %d, ARNs of managed policies included: use fewer or shorter resources, a smaller max_length of the parameters, or two entitlements", n, maxPolicy)
	}
	return s
}

// checkRole checks the role's ARN, and returns its partition.
func (c Config) checkRole(r Role, bad func(key, format string, args ...any)) string {
	form, want := roleARN, partitionOf(c.Region)
	if c.Endpoint != "" {
		form = foreignRoleARN // MinIO: arn:minio:iam:::role/NAME
	}
	m := form.FindStringSubmatch(r.RoleARN)
	switch {
	case m == nil || len(r.RoleARN) > maxPolicy:
		bad("aws/role_arn", "give the ARN of a role, such as arn:%s:iam::123456789012:role/reports", want)
		return want
	case c.Endpoint == "" && m[1] != want:
		bad("aws/role_arn", "the issuer's region, %s, is in the partition %s, where a role of %s can't be assumed", c.Region, want, m[1])
	}
	return m[1]
}

// checkAssumeRoleOnly checks the keys that require assume_role.
func (c Config) checkAssumeRoleOnly(r Role, bad func(key, format string, args ...any)) {
	if r.ExternalID != "" && (!externalID.MatchString(r.ExternalID) || len(r.ExternalID) > 1224) {
		bad("aws/external_id", "2 to 1224 letters, digits and any of _+=,.@:/-")
	}
	if c.AssumeRole == nil && r.ExternalID != "" {
		bad("aws/external_id", "only assume_role sends an external ID: an assertion names its entitlement in sub instead")
	}
	if c.AssumeRole == nil && r.Chain {
		bad("aws/chain", "web_identity assumes the role directly: remove chain")
	}
}

func checkManaged(r Role, partition string, bad func(key, format string, args ...any)) {
	if len(r.ManagedPolicies) > maxManagedPolicies {
		bad("aws/managed_policies", "AWS accepts at most %d", maxManagedPolicies)
	}
	for i, arn := range r.ManagedPolicies {
		key := fmt.Sprintf("aws/managed_policies/%d", i)
		m := managedARN.FindStringSubmatch(arn)
		switch {
		case m == nil:
			bad(key, "give the ARN of a managed policy, such as arn:%s:iam::123456789012:policy/reports", partition)
		case m[1] != partition:
			bad(key, "the role is in the partition %s: the policy must be, too", partition)
		case m[2] != "aws" && !strings.Contains(r.RoleARN, ":"+m[2]+":"):
			bad(key, "AWS accepts only policies in the role's own account, and AWS's own")
		case slices.Contains(r.ManagedPolicies[:i], arn):
			bad(key, "it is listed twice")
		}
	}
}

func checkTTL(r Role, e *broker.Entitlement, bad func(key, format string, args ...any)) {
	switch {
	case e.MaxTTL < MinTTL:
		bad("max_ttl", "AWS makes no session shorter than %s", broker.FormatDuration(MinTTL))
	case e.MaxTTL > MaxTTL:
		bad("max_ttl", "AWS makes no session longer than %s", broker.FormatDuration(MaxTTL))
	case r.Chain && e.MaxTTL > ChainMaxTTL:
		bad("max_ttl", "at most %s with chain: AWS limits a role that a role assumes to that", broker.FormatDuration(ChainMaxTTL))
	}
}

// checkFullRole requires the operator to state that a credential is the whole
// role.
func checkFullRole(r Role, bad func(key, format string, args ...any)) {
	switch {
	case !r.FullRole && len(r.Scopes) == 0:
		bad("scopes", "name what can be requested, such as read: {actions: [s3:GetObject], resources: [ARN]}; or set aws: {full_role: true}, which allows everything that the role may do")
	case r.FullRole && len(r.Scopes) > 0:
		bad("aws/full_role", "it allows everything that the role may do: remove it, or the scopes")
	case r.FullRole && len(r.ManagedPolicies) > 0:
		bad("aws/full_role", "it allows everything that the role may do, and managed_policies allow less: remove one of them")
	}
}

// A scopeCheck checks and compiles one scope.
type scopeCheck struct {
	partition  string
	parameters map[string]broker.Parameter
	key        string
	bad        func(key, format string, args ...any)
}

func (c scopeCheck) compile(s Scope) scope {
	if len(s.Actions) == 0 {
		c.bad(c.key+"/actions", "name the actions that it allows, such as [s3:GetObject]")
	}
	if len(s.Resources) == 0 {
		c.bad(c.key+"/resources", "name the resources that it allows them on, such as [\"arn:%s:s3:::reports/*\"]", c.partition)
	}
	wild := false
	for i, a := range s.Actions {
		if !action.MatchString(a) {
			c.bad(fmt.Sprintf("%s/actions/%d", c.key, i), "%q is not an action: write service:Action, such as s3:GetObject; only the second part may have wildcards", a)
		}
		wild = wild || strings.ContainsAny(a, "*?")
	}
	for i, r := range s.Resources {
		c.resource(fmt.Sprintf("%s/resources/%d", c.key, i), r, wild)
	}
	return scope{sortedSet(s.Actions), sortedSet(s.Resources)}
}

// resource checks a resource. wild means that an action of the scope has a
// wildcard; on every resource, that would allow more than an approver can judge.
func (c scopeCheck) resource(key, r string, wild bool) {
	m := resource.FindStringSubmatch(r)
	switch {
	case r != "*" && m == nil:
		c.bad(key, "%q is not a resource: give an ARN, with parameters and wildcards in its last part only, or \"*\"", r)
		return
	case r != "*" && m[1] != c.partition && (m[1] != "aws" || strings.HasPrefix(c.partition, "aws")):
		c.bad(key, "it is in the partition %s, and the role is in %s: it would allow nothing", m[1], c.partition)
	case wild && (r == "*" || strings.Trim(m[2], "*?") == ""):
		c.bad(key, "it is every resource: write every action of the scope in full, or name the resources")
	case !isPlain(r) || strings.Contains(r, ".."):
		c.bad(key, "it has characters that an ARN can't have")
	case strings.Contains(reference.ReplaceAllString(r, ""), "$"):
		c.bad(key, "write a parameter as ${name}; AWS's own policy variables are not supported")
	}
	for _, m := range reference.FindAllStringSubmatch(r, -1) {
		c.reference(key, m[1])
	}
}

// reference requires a parameter that always has a value: without one,
// "team-${team}*" would become "team-*".
func (c scopeCheck) reference(key, name string) {
	p, known := c.parameters[name]
	switch {
	case !known:
		c.bad(key, "there is no parameter %q", name)
	case !p.Required:
		c.bad("parameters/"+name, "%s.resources references it: make it required", strings.ReplaceAll(c.key, "/", "."))
	case p.Pattern == nil || p.Pattern.MatchString(""):
		c.bad("parameters/"+name, "%s.resources references it: its pattern must not match an empty text", strings.ReplaceAll(c.key, "/", "."))
	}
}

// isPlain reports whether a text has only characters that AWS accepts in a policy
// (up to U+00FF), and none that JSON escapes. Its meaning and length are then the same
// in the policy.
func isPlain(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool {
		return r > 0xff || unicode.IsControl(r) || r == '"' || r == '\\'
	})
}

// partitionOf returns the partition of a region.
func partitionOf(region string) string {
	for _, p := range [][2]string{
		{"cn-", "aws-cn"}, {"us-gov-", "aws-us-gov"}, {"us-isob-", "aws-iso-b"}, {"us-isof-", "aws-iso-f"},
		{"us-iso-", "aws-iso"}, {"eu-isoe-", "aws-iso-e"}, {"eusc-", "aws-eusc"},
	} {
		if strings.HasPrefix(region, p[0]) {
			return p[1]
		}
	}
	return "aws"
}
