# Makes the middle of guardian-config.toml(5) of config.toml: what a comment says is said of the section or the key below.
function roff(text,   parts, i, out) {
  gsub(/\\/, "\\e", text)
  gsub(/-/, "\\-", text)
  out = ""
  # Every second part between backquotes is what is typed.
  for (i = split(text, parts, "`"); i > 0; i--) out = (i % 2 ? parts[i] : "\\fB" parts[i] "\\fR") out
  return out ~ /^[.']/ ? "\\&" out : out
}
function flush() { if (said != "") print said; said = "" }
BEGIN { print ".SH DESCRIPTION" }
/^# / { said = said (said == "" ? "" : "\n") roff(substr($0, 3)); next }
/^#$/ { said = said "\n.PP"; next }
/^\[/ {
  if (!keys) { keys = 1 }
  print ".SH \"SECTION " roff($0) "\""
  flush(); next
}
/^[a-z_.]+ = / { print ".TP\n\\fB" roff($0) "\\fR"; flush(); next }
/^$/ { if (!keys) flush() }
