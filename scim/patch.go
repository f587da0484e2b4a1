package scim

import (
	"maps"
	"reflect"
	"slices"
	"strings"
)

// maxOperations bounds the operations of a PATCH.
const maxOperations = 1000

// An operation is one of a PATCH (RFC 7644, section 3.5.2).
type operation struct {
	op       string // add, replace or remove
	path     string // empty: the value names the attributes
	value    any
	hasValue bool
	lenient  bool // the path is from the value: what only the broker writes is ignored
}

// parsePatch parses the body of a PATCH.
func parsePatch(body []byte) ([]operation, error) {
	object, err := parseObject(body)
	if err != nil {
		return nil, err
	}
	if err := checkSchemas(object, urnPatch); err != nil {
		return nil, err
	}
	value, _, err := member(object, "Operations")
	if err != nil {
		return nil, err
	}
	list, _ := value.([]any)
	if len(list) == 0 || len(list) > maxOperations {
		return nil, bad(typeInvalidSyntax, "Operations is a list of 1 to %d operations", maxOperations)
	}
	var ops []operation
	for _, item := range list {
		op, err := parseOperation(item)
		if err != nil {
			return nil, err
		}
		ops = append(ops, op)
	}
	return ops, nil
}

func parseOperation(item any) (o operation, err error) {
	object, ok := item.(map[string]any)
	if !ok {
		return o, bad(typeInvalidSyntax, "an operation is an object")
	}
	op, _, err := member(object, "op")
	if err != nil {
		return o, err
	}
	name, _ := op.(string)
	if o.op = strings.ToLower(name); !slices.Contains([]string{"add", "replace", "remove"}, o.op) {
		return o, bad(typeInvalidSyntax, "op is add, replace or remove")
	}
	given, hasPath, err := member(object, "path")
	if err != nil {
		return o, err
	}
	if hasPath && given != nil {
		if o.path, ok = given.(string); !ok {
			return o, bad(typeInvalidPath, "path is a string")
		}
	}
	if o.value, o.hasValue, err = member(object, "value"); err != nil {
		return o, err
	}
	switch {
	case o.op == "remove" && strings.TrimSpace(o.path) == "":
		return o, bad(typeNoTarget, "remove needs a path")
	case o.op != "remove" && !o.hasValue:
		return o, bad(typeInvalidValue, "%s needs a value", o.op)
	}
	return o, nil
}

// A patcher applies operations to a document. The members of a group are not in the
// document: they go to members.
type patcher struct {
	resource *resourceType
	doc      Document
	members  *MemberChange // nil: the resource has none
}

// patch applies operations in order. After an error, the document is unusable.
func (p *patcher) patch(ops []operation) error {
	for _, o := range ops {
		if err := p.apply(o); err != nil {
			return err
		}
	}
	return p.resource.check(p.doc)
}

func (p *patcher) apply(o operation) error {
	if o.path == "" {
		return p.applyObject(o)
	}
	target, err := p.resource.parsePath(o.path)
	switch {
	case err != nil && o.lenient && isIgnored(o.path):
		return nil
	case err != nil:
		return err
	case target.readOnly() && o.lenient:
		return nil // Okta repeats the id
	case target.readOnly():
		return bad(typeMutability, "%s is read-only", o.path)
	case target.attr == nil:
		return p.applyExtension(o, target)
	case target.attr.name == "members" && p.members != nil:
		return p.members.apply(o, target)
	}
	d := target.container(p.resource, p.doc, o.op != "remove")
	if d == nil {
		return nil // nothing to remove
	}
	switch {
	case target.filter != nil:
		return applySelected(d, o, target)
	case target.sub != nil:
		return applySub(d, o, target)
	}
	return applyAttribute(d, o, target.attr)
}

// isIgnored reports whether a member of a value without a path is ignored. A name that is
// neither known nor listed here is an error: a misspelled "active" must not look as if the
// user had been deactivated.
func isIgnored(name string) bool {
	return slices.ContainsFunc([]string{"password"}, func(other string) bool { return strings.EqualFold(name, other) })
}

// applyObject applies an operation without a path: the names in its value are paths.
func (p *patcher) applyObject(o operation) error {
	object, ok := o.value.(map[string]any)
	if !ok {
		return bad(typeInvalidValue, "without a path, the value is an object")
	}
	return p.applyMembers(o, "", object)
}

func (p *patcher) applyMembers(o operation, prefix string, object map[string]any) error {
	if err := checkNames(object); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(object)) {
		one := operation{op: o.op, path: prefix + name, value: object[name], hasValue: true, lenient: true}
		if err := p.apply(one); err != nil {
			return err
		}
	}
	return nil
}

// checkNames refuses two spellings of one name in an object, and an empty name.
func checkNames(object map[string]any) error {
	seen := map[string]bool{}
	for name := range object {
		lower := strings.ToLower(name)
		if seen[lower] || strings.TrimSpace(name) == "" {
			return bad(typeInvalidSyntax, "a name in the value is empty or appears twice")
		}
		seen[lower] = true
	}
	return nil
}

// applyExtension applies an operation on all attributes of an extension.
func (p *patcher) applyExtension(o operation, target path) error {
	if o.op == "remove" || o.value == nil {
		delete(p.doc, target.schema.id)
		return nil
	}
	object, ok := o.value.(map[string]any)
	if !ok {
		return bad(typeInvalidValue, "%s is an object", target.schema.id)
	}
	return p.applyMembers(o, target.schema.id+":", object)
}

// applyAttribute applies an operation on a whole attribute.
func applyAttribute(d Document, o operation, a *attribute) error {
	if o.op == "remove" && (!o.hasValue || o.value == nil || !a.multi) {
		delete(d, a.name)
		return nil
	}
	v, err := a.coerce(o.value)
	if err != nil {
		return err
	}
	old, _ := d[a.name].([]any)
	list, _ := v.([]any)
	switch {
	case o.op == "remove":
		d[a.name] = slices.DeleteFunc(slices.Clone(old), func(item any) bool {
			return slices.ContainsFunc(list, func(gone any) bool { return reflect.DeepEqual(item, gone) })
		})
		return nil
	case v == nil && o.op == "replace":
		delete(d, a.name) // an empty value means unassigned (RFC 7643, section 2.5)
		return nil
	case v == nil:
		return nil
	case a.multi && o.op == "add":
		return addValues(d, a, old, list)
	case a.multi:
		d[a.name] = v
		return nil
	}
	if parts, ok := v.(Document); ok {
		return mergeInto(d, a, parts, o.value)
	}
	d[a.name] = v
	return nil
}

// addValues appends the values that the attribute does not have.
func addValues(d Document, a *attribute, old, more []any) error {
	list := slices.Clone(old)
	for _, v := range more {
		if slices.ContainsFunc(list, func(item any) bool { return reflect.DeepEqual(item, v) }) {
			continue
		}
		if isPrimary(v) {
			demote(list)
		}
		list = append(list, v)
	}
	if len(list) > maxValues {
		return bad(typeInvalidValue, "%s has more than %d values", a.name, maxValues)
	}
	d[a.name] = list
	return nil
}

// mergeInto replaces the given parts of a complex attribute and keeps the others (RFC
// 7644, sections 3.5.2.1 and 3.5.2.3). A part that is given as null is removed.
func mergeInto(d Document, a *attribute, parts Document, given any) error {
	old, ok := d[a.name].(Document)
	if !ok {
		old = Document{}
	}
	maps.Copy(old, parts)
	dropNulls(old, a, given)
	d[a.name] = old
	return nil
}

func dropNulls(d Document, a *attribute, given any) {
	object, _ := given.(map[string]any)
	for name, v := range object {
		if sub := a.sub.find(name); sub != nil && (v == nil || v == "") {
			delete(d, sub.name)
		}
	}
}

// applySub applies an operation on a part of a complex attribute, or of all its values.
func applySub(d Document, o operation, target path) error {
	a := target.attr
	if a.multi {
		list, _ := d[a.name].([]any)
		if len(list) == 0 && o.op != "remove" {
			return bad(typeNoTarget, "%s has no value: select one with a filter", a.name)
		}
		return setPart(list, o, target.sub)
	}
	part, ok := d[a.name].(Document)
	if !ok {
		if o.op == "remove" {
			return nil
		}
		part = Document{}
		d[a.name] = part
	}
	return setPart([]any{part}, o, target.sub)
}

// setPart sets or removes a part of complex values.
func setPart(list []any, o operation, sub *attribute) error {
	var v any
	if o.op != "remove" {
		var err error
		if v, err = sub.coerce(o.value); err != nil {
			return err
		}
	}
	for _, item := range list {
		if v == nil {
			delete(item.(Document), sub.name)
		} else {
			item.(Document)[sub.name] = cloneValue(v)
		}
	}
	return nil
}

// applySelected applies an operation on the values that a filter selects.
func applySelected(d Document, o operation, target path) error {
	a := target.attr
	list, _ := d[a.name].([]any)
	var selected, others []any
	for _, item := range list {
		if target.filter.matches(item.(Document)) {
			selected = append(selected, item)
		} else {
			others = append(others, item)
		}
	}
	if o.op == "remove" && target.sub == nil {
		d[a.name] = others
		return nil
	}
	if len(selected) == 0 && o.op != "remove" {
		// Entra ID sets a value before it exists. A filter that only compares with eq
		// describes the value to add.
		item, err := described(o, target)
		if err != nil {
			return err
		}
		if list, selected = append(list, item), []any{item}; len(list) > maxValues {
			return bad(typeInvalidValue, "%s has more than %d values", a.name, maxValues)
		}
		d[a.name] = list
	}
	if target.sub != nil {
		if err := setPart(selected, o, target.sub); err != nil {
			return err
		}
	} else if err := mergeSelected(selected, o, a); err != nil {
		return err
	}
	if slices.ContainsFunc(selected, isPrimary) {
		demote(others)
	}
	return nil
}

// described returns the value that the filter of a path describes.
func described(o operation, target path) (Document, error) {
	item := Document{}
	if o.op == "replace" && target.sub == nil || !target.filter.describe(item) {
		return nil, bad(typeNoTarget, "no value of %s matches the path", target.attr.name)
	}
	return item, nil
}

// describe sets the values that the filter compares with eq. It reports false for any
// other filter.
func (f *filter) describe(d Document) bool {
	switch {
	case f.op == "and":
		for _, part := range f.parts {
			if !part.describe(d) {
				return false
			}
		}
		return true
	case f.op != "eq" || f.attr.attr == nil || f.value == nil:
		return false
	}
	v, err := f.attr.attr.coerce(f.value)
	if err != nil || v == nil || d[f.attr.attr.name] != nil && d[f.attr.attr.name] != v {
		return false
	}
	d[f.attr.attr.name] = v
	return true
}

// mergeSelected merges a value into the selected ones.
func mergeSelected(selected []any, o operation, a *attribute) error {
	v, err := a.one(o.value)
	if err != nil {
		return err
	}
	parts, ok := v.(Document)
	if !ok {
		return bad(typeInvalidValue, "the value is an object")
	}
	for _, item := range selected {
		maps.Copy(item.(Document), parts.clone())
		dropNulls(item.(Document), a, o.value)
	}
	return nil
}

func isPrimary(item any) bool {
	d, ok := item.(Document)
	return ok && d["primary"] == true
}

// demote clears the primary mark of values, because another one becomes primary (RFC
// 7644, section 3.5.2).
func demote(list []any) {
	for _, item := range list {
		if isPrimary(item) {
			item.(Document)["primary"] = false
		}
	}
}
