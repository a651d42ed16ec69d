#include "cli/findings.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>

namespace rankslice::cli {

namespace {

std::string line_of(Finding const& finding, std::string const& host) {
  auto text = fmt::format("{:8} {:11} {}{}\n", finding.status(), finding.check, host, finding.text);
  if (!finding.advice.empty()) text += fmt::format("{:21}{}\n", "", finding.advice);
  return text;
}

std::string_view compared(Finding const& finding) { return finding.compared.empty() ? finding.text : finding.compared; }

bool is_as_on(HostFindings const& first, Finding const& finding) {
  return std::ranges::any_of(first.findings, [&](Finding const& known) {
    return known.check == finding.check && compared(known) == compared(finding) && known.code == finding.code;
  });
}

}  // namespace

std::string findings_text(std::vector<HostFindings> const& hosts) {
  std::string text;
  for (auto const& finding : hosts.front().findings) text += line_of(finding, "");
  for (auto const& host : hosts) {
    for (auto const& finding : host.findings) {
      if (!is_as_on(hosts.front(), finding)) text += line_of(finding, host.host + ": ");
    }
  }
  return text;
}

Json pack(HostFindings const& host) {
  Json findings = Json::array();
  for (auto const& finding : host.findings) {
    findings.push_back({finding.check, finding.text, finding.advice, static_cast<int>(finding.code), finding.compared});
  }
  return {{"host", host.host}, {"findings", std::move(findings)}};
}

HostFindings unpack_findings(Json const& packed) {
  HostFindings host{.host = packed["host"], .findings = {}};
  for (auto const& finding : packed["findings"]) {
    host.findings.push_back({.check = finding[0],
                             .text = finding[1],
                             .advice = finding[2],
                             .code = static_cast<ExitCode>(finding[3].get<int>()),
                             .compared = finding[4]});
  }
  return host;
}

Json findings_json(std::vector<HostFindings> const& hosts) {
  Json all = Json::array();
  auto problems = 0;
  for (auto const& host : hosts) {
    Json findings = Json::array();
    for (auto const& finding : host.findings) {
      problems += finding.code == ExitCode::done ? 0 : 1;
      findings.push_back(
          {{"check", finding.check}, {"status", finding.status()}, {"text", finding.text}, {"advice", finding.advice}});
    }
    all.push_back({{"host", host.host}, {"findings", std::move(findings)}});
  }
  return {{"schema", "rankslice.doctor/1"}, {"ok", problems == 0}, {"problems", problems}, {"hosts", std::move(all)}};
}

}  // namespace rankslice::cli
