#include "comm/tcp_rendezvous.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <optional>
#include <string>

#include "rankslice/error.hpp"

#include "support/temp_dir.hpp"

namespace rankslice {
namespace {

TEST(TcpRendezvous, IsAHostAndAPort) {
  auto const by_name = parse_rendezvous("node-7.cluster:29400");
  EXPECT_EQ(by_name.host, "node-7.cluster");
  EXPECT_EQ(by_name.port, 29400);
  EXPECT_EQ(by_name.file, "");
  auto const v6 = parse_rendezvous("[fe80::1]:65535");
  EXPECT_EQ(v6.host, "fe80::1");
  EXPECT_EQ(v6.port, 65535);
}

TEST(TcpRendezvous, OrAFile) {
  auto const rendezvous = parse_rendezvous("file:/shared/job:7/meet");
  EXPECT_EQ(rendezvous.file, "/shared/job:7/meet");
  EXPECT_EQ(rendezvous.host, "");
}

TEST(TcpRendezvous, RefusesWhatIsNeither) {
  for (auto const* const text : {"", "host", "host:", ":29400", "host:0", "host:65536", "host:-1", "host:29400x",
                                 "::1:29400", "file:", "[]:29400", "host: 29400"}) {
    EXPECT_THROW(std::ignore = parse_rendezvous(text), UsageError) << text;
  }
}

TEST(TcpRendezvous, AFileTellsWhereAsLongAsItIsPublished) {
  test::TempDir const folder;
  auto const file = folder.file("meet");
  MeetingPlace const place{.token = "t1", .host = "h", .port = 4711, .addresses = {"10.0.0.1", "fd00::2"}};
  {
    PublishedPlace const published(file, place);
    auto const read = read_meeting_place(file);
    ASSERT_TRUE(read);
    EXPECT_EQ(read->token, "t1");
    EXPECT_EQ(read->host, "h");
    EXPECT_EQ(read->port, 4711);
    EXPECT_THAT(read->addresses, testing::ElementsAre("10.0.0.1", "fd00::2"));
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(TcpRendezvous, ALaterRunReplacesTheFileAndKeepsIt) {
  test::TempDir const folder;
  auto const file = folder.file("meet");
  std::optional<PublishedPlace> earlier(std::in_place, file, MeetingPlace{.token = "t1", .host = "h", .port = 1});
  PublishedPlace const later(file, MeetingPlace{.token = "t2", .host = "h", .port = 2});
  earlier.reset();
  ASSERT_TRUE(read_meeting_place(file));
  EXPECT_EQ(read_meeting_place(file)->token, "t2");
}

TEST(TcpRendezvous, AFileThatEndsEarlyIsNoPlace) {
  test::TempDir const folder;
  auto const file = folder.file("meet");
  std::string whole;
  {
    PublishedPlace const published(file, {.token = "t1", .host = "h", .port = 4711, .addresses = {"10.0.0.1"}});
    std::ifstream in(file);
    whole.assign(std::istreambuf_iterator<char>(in), {});
  }
  for (std::size_t size = 0; size + 1 < whole.size(); ++size) {  // the last character is a line's end
    std::ofstream(file) << whole.substr(0, size);
    EXPECT_FALSE(read_meeting_place(file)) << size << " bytes";
  }
}

TEST(TcpRendezvous, TwoRunsHaveTwoTokens) { EXPECT_NE(make_meeting_place(1).token, make_meeting_place(1).token); }

TEST(TcpRendezvous, NamesAFileThatCannotBeWritten) {
  test::TempDir const folder;
  try {
    PublishedPlace const published(folder.file("no/such/folder"), {});
    FAIL() << "published";
  } catch (IoError const& error) {
    EXPECT_EQ(error.code, ExitCode::cannot_create);
    EXPECT_THAT(error.what(), testing::HasSubstr("no/such/folder"));
    EXPECT_THAT(error.what(), testing::HasSubstr("No such file or directory"));
  }
}

}  // namespace
}  // namespace rankslice
